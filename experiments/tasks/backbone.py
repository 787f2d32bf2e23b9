"""From a config to a network: which convolution, which attention behind a block, which network."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dyn import layers, models
from experiments.core.errors import UserError, suggest_nearest

# The parts of a config that `make_network` uses.
SECTIONS = ("model", "conv", "attention", "classifier", "dtype")
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
# The networks that take any convolution of the catalogue.
NETWORKS = ("resnet", "vgg16", "mobilenet_v2")
# Whose authors have them in the place of MobileNetV2's depthwise convolutions, too.
DEPTHWISE = (layers.CondConv, layers.DynamicConv, layers.ODConv)
# What a setting of `config.model` may be, where it is one of a few words.
WORDS = {
    "network": NETWORKS,
    "depth": tuple(RESNETS),
    "stem": ("imagenet", "small"),
    "context": ("input", "block", "carried", "carried_pixels"),
    "shortcut": ("static", "conv"),
}


def make_network(config: ConfigDict, num_classes: int, spatial_axes: int) -> nn.Module:
    """The network that `config.model`, `.conv`, `.attention` and `.classifier` describe.

    With `config.model.hidden` it is a `Classifier` over the network's features.

    Raises:
        UserError: for a layer, a field of it, or a word of `config.model` that does not exist.
    """
    backbone = partial(make_backbone(config), spatial_axes=spatial_axes)
    ends = {
        "num_classes": num_classes,
        "dense": make_layer(config, "classifier", CLASSIFIERS),
        "dropout": config.model.dropout,
    }

    def build(**convs: Callable[..., nn.Module] | None) -> nn.Module:
        if not config.model.hidden:
            return backbone(**ends, **convs)
        return models.Classifier(
            **ends,
            backbone=partial(backbone, num_classes=None, **convs),
            hidden=config.model.hidden,
            dtype=jnp.dtype(config.dtype),
        )

    return with_conv(config, build, spatial_axes)


def with_conv(config: ConfigDict, build: Callable[..., nn.Module], spatial_axes: int) -> nn.Module:
    """What `build` makes of the convolution that `config.conv` names.

    It is called with `conv=`, and with what else in the network of `config.model` is made of it: with
    `shortcut=` or `depthwise=`.
    """
    conv = make_layer(config, "conv", CONVS)

    def network(made: Callable[..., nn.Module]) -> nn.Module:
        convs = {"conv": made}
        if config.model.network == "resnet":
            convs["shortcut"] = made if config.model.shortcut == "conv" else None
        elif config.model.network == "mobilenet_v2":
            convs["depthwise"] = made if conv.func in DEPTHWISE else None
        return build(**convs)

    if conv.func is layers.WarehouseConv:
        # The convolutions of a stage share their cells. Sizes do not matter for the kernels.
        example = jax.ShapeDtypeStruct((1, *(32,) * spatial_axes, 3), jnp.float32)
        share = None if config.model.network == "resnet" else _stage
        return layers.share_kernels(network, example, share=share, **conv.keywords)
    return network(conv)


def _stage(path: tuple[str, ...]) -> str:
    """`stage2` of `stage2_conv1`, of a network itself or of a backbone."""
    return next(name for name in path if name != "backbone").partition("_")[0]


def make_backbone(config: ConfigDict) -> partial:
    """A network but for what it ends in and what it convolves with.

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
    fields = {"stem": config.model.stem, "dtype": jnp.dtype(config.dtype)}
    if config.model.network == "vgg16":
        return partial(models.VGG16, width=config.model.width, **fields)
    if config.model.network == "mobilenet_v2":
        # So that 64, at which the others are as published, is so here.
        return partial(models.MobileNetV2, width=config.model.width / 64, **fields)
    return partial(
        RESNETS[config.model.depth],
        attention=make_layer(config, "attention", ATTENTIONS),
        width=config.model.width,
        context=config.model.context,
        representation=config.model.representation,
        **fields,
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
        raise UserError(
            f"--config.{section}.name={name} does not exist{suggest_nearest(name, known)}"
        )
    if known[name] is None:
        return None
    names = [field.name for field in dataclasses.fields(known[name])]
    for field in fields:
        if field not in names:
            raise UserError(
                f"--config.{section}.{field}: {name} has no such field{suggest_nearest(field, names)}"
            )
    return partial(known[name], **fields)
