"""Omni-dimensional dynamic convolution (Li, Zhou, Yao; ICLR 2022) in every block of a ResNet-18.

    python -m experiments.main --config=experiments/configs/odconv.py

Measured on two x86-64 cores (jax 0.10.2), seed 0:

* digits, the command above: test accuracy 0.9805 (359 pictures) after 65 s, 14 s of it compiling;
  0.987 +- 0.003 over three seeds (README.md).
* Adiac, `--config=experiments/configs/odconv.py:adiac --config.data.source=PATH/Adiac`: test accuracy
  0.8363 (391 series) after 479 s on cores that had other work; over ten folds 0.840 +- 0.028
  (docs/studies.md).
* Tiny ImageNet, a subset of 80 pictures per class, `:tiny_imagenet --config.image_size=64
  --config.steps=300`: top-1 0.0205, top-5 0.0815 (chance: 0.005, 0.025) after 434 s on shared cores.
  The full set: not run.

The attention branch has a layer norm. With the paper's batch norm (`--config.conv.attention_norm=batch`)
training on digits broke down as the temperature approached 1: test accuracy 0.92; the best
evaluation was at temperature 16, before the breakdown (an older recipe).
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns ODConv with four candidate kernels for the data set that `argument` names."""
    conv = {"name": "odconv", "num_kernels": 4, "attention_norm": "layer"}
    return common.get_config(argument, name="odconv", conv=conv)
