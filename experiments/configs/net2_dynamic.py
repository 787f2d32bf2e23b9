"""The study's Net2 for series, dynamic: its kernels are those of a trained static Net2, and frozen.

The study: Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

    python -m experiments.study --dataset=adiac --configs=net2,net2_dynamic --folds=10 --source=PATH/Adiac
    python -m experiments.main --config=experiments/configs/net2_dynamic.py:adiac
        --config.init_from=RUN --config.data.source=PATH/Adiac

RUN is the workdir of a finished `net2.py`. `--config.start.freeze=False` lets the kernels learn,
`--config.start.config=` (nothing after the sign) starts from scratch.

Measured on one x86-64 core (jax 0.10.2), ten folds of Adiac by the first command: accuracy 0.719 +- 0.074,
the static network 0.694. By then it has trained twice as long: once without
attention, once with it.
"""

from ml_collections import ConfigDict

from experiments.configs import net1_dynamic, net2


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns Net2 with DynamicConv for the series that `argument` names; without one, for Adiac."""
    return net1_dynamic.get_config(argument, net2.get_config)
