"""From a config to a network: which convolution, which attention behind a block, which depth."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dyn import layers, models
from experiments.errors import UserError, nearest

CONVS = {
    "conv": layers.Conv,
    "condconv": layers.CondConv,
    "dcd": layers.DCDConv,
    "dyconv": layers.DynamicConv,
    "fdconv": layers.FDConv,
    "gated": layers.GatedConv,
    "odconv": layers.ODConv,
    "pixel": layers.PixelDynamicConv,
    "rotated": layers.RotatedConv,
    "spectral_norm": layers.SpectralNormConv,
    "warehouse": layers.WarehouseConv,
}
ATTENTIONS = {"none": None, "squeeze_excite": layers.SqueezeExcite, "cbam": layers.CBAM}
CLASSIFIERS = {"dense": nn.Dense, "dcd": layers.DCDDense}
RESNETS = {
    # For runs that show that something works, and are mostly compilation.
    6: partial(models.ResNet, stage_sizes=(1, 1), block=models.BasicBlock),
    10: partial(models.ResNet, stage_sizes=(1, 1, 1, 1), block=models.BasicBlock),
    18: models.ResNet18,
    34: models.ResNet34,
    50: models.ResNet50,
}
# What a setting of `config.model` may be, where it is one of a few words.
WORDS = {
    "depth": tuple(RESNETS),
    "stem": ("imagenet", "small"),
    "context": ("input", "block", "carried", "carried_pixels"),
    "shortcut": ("static", "conv"),
}


def make_resnet(config: ConfigDict, num_classes: int, spatial_axes: int) -> nn.Module:
    """The residual network that `config.model`, `.conv`, `.attention` and `.classifier` describe.

    Raises:
        UserError: for a layer, a field of it, or a word of `config.model` that does not exist.
    """
    build = partial(
        make_backbone(config),
        num_classes=num_classes,
        dense=make_layer(config, "classifier", CLASSIFIERS),
        spatial_axes=spatial_axes,
        dropout=config.model.dropout,
    )
    return with_conv(config, build, spatial_axes)


def with_conv(config: ConfigDict, build: Callable[..., nn.Module], spatial_axes: int) -> nn.Module:
    """What `build(conv=, shortcut=)` makes of the convolution that `config.conv` names."""

    def network(conv: Callable[..., nn.Module]) -> nn.Module:
        return build(conv=conv, shortcut=conv if config.model.shortcut == "conv" else None)

    conv = make_layer(config, "conv", CONVS)
    if conv.func is layers.WarehouseConv:
        # The convolutions of a stage share their cells. Sizes do not matter for the kernels.
        example = jax.ShapeDtypeStruct((1, *(32,) * spatial_axes, 3), jnp.float32)
        return layers.share_kernels(network, example, **conv.keywords)
    return network(conv)


def make_backbone(config: ConfigDict) -> partial:
    """A residual network but for what it ends in and what it convolves with.

    Raises:
        UserError: for a layer, a field of it, or a word of `config.model` that does not exist.
    """
    for field, words in WORDS.items():
        if config.model[field] not in words:
            raise UserError(
                f"--config.model.{field}={config.model[field]}: choose one of "
                f"{', '.join(map(str, words))}."
            )
    if config.model.context != "input" and config.conv.name == "conv":
        raise UserError(
            f"--config.model.context={config.model.context}: a static convolution looks at no "
            "context; leave it at input, or choose another --config.conv.name."
        )
    return partial(
        RESNETS[config.model.depth],
        attention=make_layer(config, "attention", ATTENTIONS),
        width=config.model.width,
        stem=config.model.stem,
        context=config.model.context,
        representation=config.model.representation,
        dtype=jnp.dtype(config.dtype),
    )


def make_layer(
    config: ConfigDict, section: str, known: Mapping[str, type | None]
) -> partial | None:
    """The layer that `config.<section>.name` names, with the fields beside the name.

    Raises:
        UserError: for a name or a field that does not exist.
    """
    fields = dict(config[section])
    name = fields.pop("name")
    if name not in known:
        raise UserError(f"--config.{section}.name={name} does not exist{nearest(name, known)}")
    if known[name] is None:
        return None
    names = [field.name for field in dataclasses.fields(known[name])]
    for field in fields:
        if field not in names:
            raise UserError(
                f"--config.{section}.{field}: {name} has no such field{nearest(field, names)}"
            )
    return partial(known[name], **fields)
