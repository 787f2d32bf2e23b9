"""Makes networks from configs, and applies them in training."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dyn import layers, models
from dyn.models.backbone import convolve_spatially
from dyn.models.efficientnet import TENSORFLOW, make_condconv_fields
from experiments.configs.shared.layers import ATTENTIONS, CLASSIFIERS, CONVS
from experiments.core.errors import UserError, suggest_nearest
from experiments.tasks.task import Array, Variables

# The parts of a config that `make_network` uses.
NETWORK_SECTIONS = ("model", "conv", "attention", "classifier", "dtype")
RESNETS = {
    # Small networks for smoke runs, which are mostly compilation.
    6: partial(models.ResNet, stage_sizes=(1, 1), block=models.BasicBlock),
    10: partial(models.ResNet, stage_sizes=(1, 1, 1, 1), block=models.BasicBlock),
    18: models.ResNet18,
    34: models.ResNet34,
    50: models.ResNet50,
}
# The networks of inverted residual blocks.
MOBILE = {
    "mobilenet_v2": models.MobileNetV2,
    "mobilenet_v3": models.MobileNetV3,
    "dymn": models.DyMN,
    "efficientnet_b0": models.EfficientNetB0,
    "efficientnet_b1": models.EfficientNetB1,
    "efficientnet_lite0": models.EfficientNetLite0,
}
# The networks that take any of `CONVS`; `dymn` takes some.
NETWORKS = ("resnet", "vgg16", *MOBILE)
# The field `remat` of a network, by `config.model.remat`.
REMAT = {"none": False, "cheap": jax.checkpoint_policies.dots_saveable, "blocks": True}
# Layers that convolve each channel by itself, and leave 1x1 convolutions static.
BY_CHANNEL = (layers.DecoupledDynamicFilter, layers.Involution, layers.SequenceDynamicConv)
# Layers whose authors replace depthwise convolutions too.
MIXTURES = (layers.CondConv, layers.DynamicConv, layers.ODConv)


def make_network(config: ConfigDict, num_classes: int, spatial_axes: int) -> nn.Module:
    """Returns the network that `config.model`, `.conv`, `.attention` and `.classifier` describe.

    With `config.model.hidden` it is a `Classifier` over the network's features.
    """
    backbone = partial(make_backbone(config), spatial_axes=spatial_axes)
    ends = {
        "num_classes": num_classes,
        "dense": make_layer(config, "classifier", CLASSIFIERS),
        "dropout": config.model.dropout,
    }
    resnet = config.model.network == "resnet"

    def build(conv: Callable[..., nn.Module]) -> nn.Module:
        if CONVS[config.conv.name] in BY_CHANNEL:
            conv = convolve_spatially(conv)
        convs = {"conv": conv}
        if resnet:
            convs["shortcut"] = conv if config.model.shortcut == "conv" else None
        elif config.model.network in MOBILE:
            convs = _make_mobile_fields(config, conv)
        if not config.model.hidden:
            return backbone(**ends, **convs)
        return models.Classifier(
            **ends,
            backbone=partial(backbone, num_classes=None, **convs),
            hidden=config.model.hidden,
            dtype=jnp.dtype(config.dtype),
        )

    return build_with_conv(config, build, spatial_axes, share=None if resnet else _find_stage)


def _make_mobile_fields(config: ConfigDict, conv: Callable[..., nn.Module]) -> dict[str, Any]:
    """Returns the fields of a network of inverted residual blocks that make it that of the layer's authors.

    Raises:
        UserError: for a DyMN with a layer that cannot be in it.
    """
    layer, network = CONVS[config.conv.name], config.model.network
    fields: dict[str, Any] = {"conv": conv, "depthwise": None}
    if layer in MIXTURES + BY_CHANNEL:
        fields["depthwise"] = conv
    if network == "dymn":
        if layer not in MIXTURES:
            known = ", ".join(name for name, known in CONVS.items() if known in MIXTURES)
            raise UserError(
                f"--config.conv.name={config.conv.name}: the blocks of dymn give a context to their "
                f"convolutions, depthwise ones included; choose one of {known}."
            )
        if layer is layers.DynamicConv and "reduction" not in config.conv:
            # The block has squeezed the context.
            fields |= dict.fromkeys(("conv", "depthwise"), partial(conv, reduction=None))
    elif layer is layers.CondConv and network.startswith("efficientnet"):
        fields = make_condconv_fields(config.conv.get("num_kernels", layer.num_kernels)) | fields
    elif layer is layers.DCDConv:
        # Neither the first stage nor the last convolution.
        fields["dynamic_stages"] = range(2, 7 if network == "mobilenet_v3" else 8)
        if "pool" not in config.conv:
            fields["conv"] = partial(conv, pool=None)
    return fields


def build_with_conv(
    config: ConfigDict,
    build: Callable[[Callable[..., nn.Module]], nn.Module],
    spatial_axes: int,
    share: Callable[[tuple[str, ...]], str] | None = None,
) -> nn.Module:
    """Returns the network that `build` makes of the convolution of `config.conv`.

    With warehouses, `share` maps a layer's path to the name of the warehouse that it shares; None is for one
    warehouse per stage of a residual network.
    """
    conv = make_layer(config, "conv", CONVS)
    if conv.func is not layers.WarehouseConv:
        return build(conv)
    # Kernels do not depend on the sizes of the inputs.
    example = jax.ShapeDtypeStruct((1, *(32,) * spatial_axes, 3), jnp.float32)
    return layers.share_kernels(build, example, share=share, **conv.keywords)


def _find_stage(path: tuple[str, ...]) -> str:
    """Returns the stage of a layer of VGG or a mobile network: `stage2` for `stage2_conv1`."""
    return next(name for name in path if name != "backbone").partition("_")[0]


def make_backbone(config: ConfigDict) -> partial:
    """Returns a network that lacks its end and its convolutions."""
    fields = {"stem": config.model.stem, "dtype": jnp.dtype(config.dtype)}
    if config.model.network == "vgg16":
        return partial(models.VGG16, width=config.model.width, **fields)
    fields["remat"] = REMAT[config.model.remat]
    if config.model.network in MOBILE:
        if config.model.get("padding") == "same":
            fields |= TENSORFLOW
        fields["max_blocks"] = config.model.get("max_blocks") or None
        # Its width is a factor; 64 is as published, as for the other networks.
        network = MOBILE[config.model.network]
        return partial(network, width=config.model.width / 64, **fields)
    if config.model.context != "input" and config.conv.name == "conv":
        raise UserError(
            f"--config.model.context={config.model.context}: a static convolution looks at no "
            "context; leave it at input, or choose another --config.conv.name."
        )
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
    """Returns the layer that `config.<section>.name` names, with the fields beside the name.

    Raises:
        UserError: if the name or a field does not exist.
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


def apply_in_training(
    model: nn.Module, variables: Variables, inputs: Array, rng: Array, head_only: bool = False
) -> tuple[Array, dict[str, Any]]:
    """Returns the outputs for a batch, float32, and the variable collections that changed."""
    outputs, changed = model.apply(
        variables,
        inputs,
        train=True,
        # Networks for series do not take the argument.
        **({"head_only": True} if head_only else {}),
        # Layers with norms of their own leave the running averages alone where these cannot change.
        mutable=["losses"] if head_only else ["batch_stats", "losses"],
        rngs={"dropout": rng},
    )
    return outputs.astype(jnp.float32), dict(changed)
