"""The study's Net2 for series, static: two convolutions, max pooling, a fully connected layer.

    python -m experiments.main --config=experiments/configs/net2.py:adiac --config.data.source=PATH/Adiac

Ten folds of Adiac: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import net1


def get_config(argument: str | None = None) -> ConfigDict:
    """Net2 with static convolutions on the series that `argument` names; without one, Adiac."""
    config = net1.get_config(argument)
    config.name = config.baseline = config.model.network = "net2"
    return config
