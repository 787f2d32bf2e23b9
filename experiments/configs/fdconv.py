"""Frequency dynamic convolution (Chen et al., CVPR 2025), in every layer of the blocks, however small.

Eight groups of frequencies instead of the paper's 64: each costs a kernel's worth of memory.

    python -m experiments.main --config=experiments/configs/fdconv.py

Measured on two x86-64 cores (jax 0.10.2), seed 0: digits, the command above, test accuracy 1.0000 (359
pictures). With --config.conv.bands=False: 0.9916. Other data sets: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns FDConv with eight groups of frequencies for the data set that `argument` names."""
    conv = {"name": "fdconv", "num_kernels": 8, "bands": True, "min_features": 0}
    conv["attention_norm"] = "layer"
    return common.get_config(argument, name="fdconv", conv=conv)
