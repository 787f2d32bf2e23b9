"""Efficient channel attention (Wang et al., CVPR 2020) after every block.

    python -m experiments.main --config=experiments/configs/eca.py

Not run yet.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns a static ResNet-18 with channels scaled after each block for the data set of `argument`."""
    config = common.get_config(argument, name="eca")
    config.attention = {"name": "efficient_channel"}
    return config
