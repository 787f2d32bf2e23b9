"""The study's Net1 for series, static: one convolution, max pooling, a fully connected layer.

    python -m experiments.main --config=experiments/configs/net1.py:adiac --config.data.source=PATH/Adiac

Ten folds of Adiac: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Net1 with static convolutions on the series that `argument` names; without one, Adiac."""
    config = common.get_config(argument, default="adiac")
    config.name = config.baseline = config.model.network = "net1"
    return config
