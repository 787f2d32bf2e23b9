"""KernelWarehouse (Li, Yao; ICML 2024): the kernels of a stage are assembled from cells that they share.

`--config.conv.cell_ratio=4` has four times the parameters of the static convolutions, 0.5 half of them. The
shortcuts' convolutions are assembled, too, as in the paper. `--config.conv.basis_ratio=0.0625` is the low
rank of the authors' attention in a small ResNet-50; `dyn.models.KERNEL_WAREHOUSE` makes their networks.

    python -m experiments.main --config=experiments/configs/kernel_warehouse.py

Measured on two x86-64 cores (jax 0.10.2), seed 0: digits, the command above, test accuracy 0.9916 (359
pictures). Other data sets: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns KernelWarehouse at the parameters of static kernels for the data set of `argument`."""
    conv = {"name": "warehouse", "cell_ratio": 1.0, "attention_norm": "layer"}
    config = common.get_config(argument, name="kernel_warehouse", conv=conv)
    config.model.shortcut = "conv"
    return config
