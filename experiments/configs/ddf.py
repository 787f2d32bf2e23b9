"""Decoupled dynamic filters (Zhou et al., CVPR 2021): a filter per position times one per channel.

`--config.conv.combine=add` adds them. It keeps the number of features; in the basic blocks of a ResNet-18, a
pointwise convolution comes first where that changes. The authors replace the 3x3 convolutions of a ResNet-50.

    python -m experiments.main --config=experiments/configs/ddf.py

Not run beyond the smoke test.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns DecoupledDynamicFilter with one head for the data set that `argument` names."""
    conv = {"name": "ddf", "heads": 1, "combine": "mul"}
    return common.get_config(argument, name="ddf", conv=conv)
