"""Omni-dimensional dynamic convolution (Li, Zhou, Yao; ICLR 2022) in every block of a ResNet-18.

    python -m experiments.main --config=experiments/configs/odconv.py

RESULT_ODCONV
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """ODConv with four candidate kernels on the data set that `argument` names."""
    config = common.get_config(argument)
    config.name = "odconv"
    config.conv = {"name": "odconv", "num_kernels": 4, "attention_norm": "layer"}
    return config
