"""The study's Net2 for series, trained twice: the static control of `net2_dynamic`, with as many steps.

The study: Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

    python -m experiments.study --dataset=adiac --configs=net2,net2_longer,net2_dynamic --folds=10
        --source=PATH/Adiac
    python -m experiments.main --config=experiments/configs/net2_longer.py:adiac
        --config.init_from=RUN --config.data.source=PATH/Adiac

RUN is the workdir of a finished `net2.py`; see `net1_longer.py`. Not measured yet.
"""

from ml_collections import ConfigDict

from experiments.configs import net1_longer, net2


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns Net2, started from a trained one, for the series of `argument`; without one, for Adiac."""
    return net1_longer.get_config(argument, net2.get_config)
