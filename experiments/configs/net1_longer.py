"""The study's Net1 for series, trained twice: the static control of `net1_dynamic`, with as many steps.

The study: Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

    python -m experiments.study --dataset=adiac --configs=net1,net1_longer,net1_dynamic --folds=10
        --source=PATH/Adiac
    python -m experiments.main --config=experiments/configs/net1_longer.py:adiac
        --config.init_from=RUN --config.data.source=PATH/Adiac

RUN is the workdir of a finished `net1.py`. Like `net1_dynamic` it starts from a trained Net1 and goes through
all epochs once more, but without attention and with kernels that learn.

Measured on one x86-64 core (jax 0.10.2), ten folds of Adiac by the first command: accuracy 0.814 +- 0.035.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.configs import net1


def get_config(
    argument: str | None = None, static: Callable[..., ConfigDict] = net1.get_config
) -> ConfigDict:
    """Returns Net1, started from a trained one, for the series of `argument`; without one, for Adiac."""
    config = static(argument)
    config.name = f"{config.baseline}_longer"
    if not config.dataset.endswith("-smoke"):  # a run of seconds has nothing to start from
        config.start.config = config.baseline
    return config
