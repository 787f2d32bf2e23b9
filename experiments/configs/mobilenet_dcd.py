"""MobileNetV2 with DCD (Li et al., ICLR 2021): 1x1 convolutions by decomposition, and the dynamic classifier.

    python -m experiments.main --config=experiments/configs/mobilenet_dcd.py:tiny_imagenet \
        --config.init_from=FILE

FILE is the published one; without `init_from` everything is learned. The number of bins and the size of the
latent space follow the authors' rule for this network, because `conv.pool` is not set.

Not run, but for `:smoke`, which is mostly compilation.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns MobileNetV2 with DCDConv and DCDDense for the data set that `argument` names."""
    conv = {"name": "dcd", "reduction": 1 / 16, "min_squeeze": 4, "attention_norm": "none"}
    config = common.get_config(argument, name="mobilenet_dcd", network="mobilenet_v2", conv=conv)
    if "classifier" in config:  # a segmentation has none
        config.classifier = {"name": "dcd"}
    return config
