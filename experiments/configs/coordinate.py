"""Coordinate attention (Hou et al., CVPR 2021) after every block.

    python -m experiments.main --config=experiments/configs/coordinate.py

Not run yet.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns a static ResNet-18 with a weight per row and column after each block."""
    config = common.get_config(argument, name="coordinate")
    config.attention = {"name": "coordinate"}
    return config
