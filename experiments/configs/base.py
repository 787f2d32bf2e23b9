"""The static twin: ResNet-18 with ordinary convolutions, by the study's recipe.

    python -m experiments.main --config=experiments/configs/base.py

RESULT_BASE
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """The study's base CNN on the data set that `argument` names."""
    config = common.get_config(argument)
    config.name = "base"
    return config
