"""A mixture of four kernels of spectral norm one (Miyato et al., ICLR 2018) in every block.

The layer is meant for discriminators; here it shows that it trains as any other.

    python -m experiments.main --config=experiments/configs/spectral_norm.py

MEASURED
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """SpectralNormConv with four candidate kernels on the data set that `argument` names."""
    config = common.get_config(argument)
    config.name = "spectral_norm"
    config.conv = {"name": "spectral_norm", "num_kernels": 4, "attention_norm": "layer"}
    return config
