"""EfficientNet-B0 with CondConv (Yang et al., NeurIPS 2019): experts in the last three stages.

    python -m experiments.main --config=experiments/configs/efficientnet_condconv.py:tiny_imagenet \
        --config.init_from=tf_efficientnet_cc_b0_4e.safetensors

The three convolutions of a block share one routing. `init_from` names timm's file; without it everything is
learned. `--config.model.network=efficientnet_b1` and `--config.conv.num_kernels=8` are the other published
networks.

Not run, but for `:smoke`, which is mostly compilation.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns EfficientNet-B0 with four experts for the data set that `argument` names."""
    conv = {"name": "condconv", "num_kernels": 4}
    config = common.get_config(
        argument, name="efficientnet_condconv", network="efficientnet_b0", conv=conv
    )
    config.model.padding = "same"
    if "normalise" in config:  # series have none
        config.normalise = {"mean": (0.5,), "std": (0.5,)}
    return config
