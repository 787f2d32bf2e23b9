"""The study's Net1 for series, dynamic: its kernels are those of a trained static Net1, and frozen.

The study: Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

    python -m experiments.study --dataset=adiac --configs=net1,net1_longer,net1_dynamic --folds=10
        --source=PATH/Adiac
    python -m experiments.main --config=experiments/configs/net1_dynamic.py:adiac
        --config.init_from=RUN --config.data.source=PATH/Adiac

RUN is the workdir of a finished `net1.py`. `--config.start.freeze=False` lets the kernels learn,
`--config.start.config=` (nothing after the sign) starts from scratch.

Measured on one x86-64 core (jax 0.10.2), ten folds of Adiac by the first command: accuracy 0.821 +- 0.033,
the static network that has trained as long 0.814.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.configs import net1


def get_config(
    argument: str | None = None, static: Callable[..., ConfigDict] = net1.get_config
) -> ConfigDict:
    """Returns Net1 with DynamicConv for the series that `argument` names; without one, for Adiac.

    Attention sees the outline of the series, because the mean of a z-normalised series is always zero.
    """
    conv = {"name": "dyconv", "num_kernels": 4, "attention_norm": "layer"}
    config = static(argument, conv=conv)
    config.name = f"{config.baseline}_dynamic"
    config.series.context = "series"
    if not config.dataset.endswith("-smoke"):  # a run of seconds has nothing to start from
        config.start.update(
            {"config": config.baseline, "awake": False, "noise": 0.3, "freeze": True}
        )
    return config
