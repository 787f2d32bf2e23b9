"""Selective kernels (Li et al., CVPR 2019) in place of every convolution of the blocks.

The authors' networks, which have them in one place of each block, are `dyn.models.SKResNet18` and others.

    python -m experiments.main --config=experiments/configs/selective.py

Not run yet.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns SelectiveKernel with two paths for the data set that `argument` names."""
    conv = {"name": "selective", "reduction": 1 / 8, "multiple_of": 16, "attention_norm": "layer"}
    config = common.get_config(argument, name="selective", conv=conv)
    config.temperature.start = 1.0  # it has none
    return config
