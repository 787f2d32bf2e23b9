"""Involution (Li et al., CVPR 2021): a kernel per position, made from the features there.

It keeps the number of features; in the basic blocks of a ResNet-18, a pointwise convolution comes first where
that changes. `dyn.models.RedNet26` is the authors' smallest network.

    python -m experiments.main --config=experiments/configs/involution.py

Not run beyond the smoke test.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns Involution in groups of 16 channels for the data set that `argument` names."""
    conv = {"name": "involution", "attention_norm": "batch"}
    return common.get_config(argument, name="involution", conv=conv)
