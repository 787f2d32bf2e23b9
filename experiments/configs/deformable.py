"""Deformable convolution (Dai et al., ICCV 2017; Zhu et al., CVPR 2019): kernel positions that move.

`--config.conv.modulated=false` leaves out the weights of the positions.

    python -m experiments.main --config=experiments/configs/deformable.py

Not run yet.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns DeformableConv with one group of offsets for the data set that `argument` names."""
    conv = {"name": "deformable", "offset_groups": 1, "modulated": True}
    config = common.get_config(argument, name="deformable", conv=conv)
    config.temperature.start = 1.0  # it has none
    return config
