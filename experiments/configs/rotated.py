"""Direction-adaptive kernels (Pu et al., ICCV 2023): one kernel in eight orientations, mixed.

The study (Bhati and Sherawat, Comprehensive Study Dynamic CNN) describes such kernels, too.

`--config.conv.rotations=N` chooses another number of orientations. `--config.conv.pooling=max` pools over
them instead of mixing: a quarter turn of the picture then turns the features. For pictures only.

    python -m experiments.main --config=experiments/configs/rotated.py

Measured on two x86-64 cores (jax 0.10.2), seed 0: digits, the command above, test accuracy 0.9889 (359
pictures). Other data sets: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns RotatedConv with eight orientations for the data set that `argument` names."""
    conv = {
        "name": "rotated",
        "num_kernels": 1,
        "rotations": 8,
        "pooling": "mixture",
        "attention_norm": "layer",
    }
    config = common.get_config(argument, name="rotated", conv=conv)
    # All orientations alike make a kernel that has none.
    config.temperature.start = 1.0
    if config.dataset == "digits":
        config.epochs = 30  # after 20, seed 0 is at 0.96
    return config
