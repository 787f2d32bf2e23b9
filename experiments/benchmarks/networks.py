"""Networks that benchmarks compare: a ResNet with each layer of the catalogue, mobile networks with some."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dyn import layers
from dyn.models import ResNet18, ResNet50, SKResNet18, SKResNet50, create_model
from dyn.models.backbone import convolve_spatially
from experiments.benchmarks.flax_resnet import make_flax_resnet
from experiments.configs.shared.overrides import override, split_override
from experiments.core.config_file import load_config_file
from experiments.core.errors import UserError
from experiments.tasks import make_task
from experiments.tasks.backbone import PUBLISHED_NAMES
from experiments.tasks.task import Task
from experiments.train.validate import resolve_config

FLAX = "flax"
MOBILE = ("mobilenet_v2", "mobilenet_v3", "efficientnet_b0", "efficientnet_lite0")


def make_networks(depth: int) -> dict[str, Callable[..., nn.Module]]:
    """Returns the network of each row, without its classes, width and dtype; other fields are the papers'."""
    resnet = {18: ResNet18, 50: ResNet50}[depth]
    papers_norm = {"attention_norm": "batch"}

    def warehouse(**fields: Any) -> nn.Module:
        def network(conv: Callable[..., nn.Module]) -> nn.Module:
            return resnet(conv=conv, shortcut=conv, **fields)

        # The shapes of the kernels do not depend on the size of the input.
        return layers.share_kernels(
            network, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), **papers_norm
        )

    def resnet_with(layer: Callable[..., nn.Module], **fields: Any) -> partial:
        return partial(resnet, conv=partial(layer, **fields))

    def spatial_resnet_with(layer: Callable[..., nn.Module], **fields: Any) -> partial:
        # They convolve each channel by itself, between the 1x1 convolutions of bottlenecks.
        return partial(resnet, conv=convolve_spatially(partial(layer, **fields)))

    four_kernels = {"num_kernels": 4}
    return {
        FLAX: partial(make_flax_resnet, depth),
        "Conv": resnet_with(layers.Conv),
        "odconv_k1": resnet_with(layers.ODConv, num_kernels=1, **papers_norm),
        "odconv": resnet_with(layers.ODConv, **four_kernels, **papers_norm),
        "odconv_k8": resnet_with(layers.ODConv, num_kernels=8, **papers_norm),
        "dyconv": resnet_with(layers.DynamicConv, **four_kernels),
        "condconv": partial(resnet_with(layers.CondConv), context="block"),
        "dcd": partial(resnet_with(layers.DCDConv), dense=layers.DCDDense),
        "warehouse": warehouse,
        "fdconv": resnet_with(layers.FDConv, **papers_norm),
        "pixel": resnet_with(layers.PixelDynamicConv, **four_kernels),
        "involution": spatial_resnet_with(layers.Involution, **papers_norm),
        "ddf": spatial_resnet_with(layers.DecoupledDynamicFilter),
        "sequence_dynamic": spatial_resnet_with(layers.SequenceDynamicConv),
        "fdy": resnet_with(layers.FrequencyDynamicConv, **four_kernels, **papers_norm),
        "partial_fdy": resnet_with(layers.PartialFrequencyDynamicConv, **four_kernels),
        "gated": resnet_with(layers.GatedConv, **four_kernels),
        "rotated": resnet_with(layers.RotatedConv, **papers_norm),
        "spectral_norm": resnet_with(layers.SpectralNormConv, **four_kernels),
        "deformable": resnet_with(layers.DeformableConv),
        "selective": {18: SKResNet18, 50: SKResNet50}[depth],
        "squeeze_excite": partial(resnet, attention=layers.SqueezeExcite),
        "cbam": partial(resnet, attention=layers.CBAM),
        "efficient_channel": partial(resnet, attention=layers.EfficientChannelAttention),
        "coordinate": partial(resnet, attention=partial(layers.CoordinateAttention, **papers_norm)),
        "dynamic_relu": partial(resnet, activation=layers.DynamicReLU),
    }


def make_mobile_networks(name: str) -> dict[str, Callable[..., nn.Module]]:
    """Returns the rows of a mobile network, as `make_networks` does; 64 is its published width.

    The row of flax has this library's network with flax's convolutions.
    """

    def network_with(conv: Callable[..., nn.Module], **fields: Any) -> Callable[..., nn.Module]:
        def make(*, width: int, **others: Any) -> nn.Module:
            published = PUBLISHED_NAMES.get(name, name)
            return create_model(published, conv=conv, width=width / 64, **fields, **others)

        return make

    def network_of(layer: Callable[..., nn.Module], **fields: Any) -> Callable[..., nn.Module]:
        conv = partial(layer, **fields)
        return network_with(conv, depthwise=conv)

    return {
        FLAX: network_with(nn.Conv, depthwise=nn.Conv, first_conv=nn.Conv),
        "Conv": network_with(layers.Conv),
        "odconv_k1": network_of(layers.ODConv, num_kernels=1, attention_norm="batch"),
        "odconv": network_of(layers.ODConv, num_kernels=4, attention_norm="batch"),
        "dyconv": network_of(layers.DynamicConv, num_kernels=4),
        "pixel": network_with(partial(layers.PixelDynamicConv, num_kernels=4)),
        "gated": network_with(partial(layers.GatedConv, num_kernels=4)),
        "squeeze_excite": network_with(layers.Conv, attention=layers.SqueezeExcite),
    }


def load_settings(place: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the complete settings of a config, such as `odconv:tiny_imagenet`, with some changed.

    Raises:
        UserError: if there is no such config or setting.
    """
    config = load_config_file(place)
    for text in overrides:
        override(config, *split_override(text, "--override"))
    return resolve_config(config)


def make_config_task(place: str, overrides: Sequence[str] = ()) -> Task:
    """Returns the task of a config, such as `odconv:tiny_imagenet`, for pictures or the objects in them.

    Args:
        place: the config.
        overrides: settings that are changed, such as `model.depth=50`.

    Raises:
        UserError: if there is no such config or setting, or its network does something else.
    """
    config = load_settings(place, overrides)
    if config.task not in ("classification", "instance_segmentation") or config.data.name == "ucr":
        raise UserError(
            f"--configs={place}: its network neither classifies pictures nor finds objects in them."
        )
    return make_task(config)
