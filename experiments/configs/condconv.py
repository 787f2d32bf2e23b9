"""CondConv (Yang et al., NeurIPS 2019): a sigmoid sum of eight experts, all of a block looking at its input.

    python -m experiments.main --config=experiments/configs/condconv.py

Measured on two x86-64 cores (jax 0.10.2), seed 0: digits, the command above, test accuracy 0.9861 (359
pictures). Other data sets: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns CondConv with eight experts for the data set that `argument` names."""
    conv = {"name": "condconv", "num_kernels": 8}
    config = common.get_config(argument, name="condconv", conv=conv)
    config.model.context = "block"
    return config
