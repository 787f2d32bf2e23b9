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
from dyn.models.efficientnet import TENSORFLOW
from dyn.models.named_parts import BY_CHANNEL
from experiments.configs.shared.layers import ATTENTIONS, CLASSIFIERS, CONVS
from experiments.configs.shared.settings import MOBILE_NETWORKS
from experiments.core.errors import UserError, suggest_nearest
from experiments.tasks.information import information_loss
from experiments.tasks.task import Array, Variables

# The parts of a config that `make_network` uses.
NETWORK_SECTIONS = ("model", "conv", "attention", "classifier", "dtype")
RESNETS: dict[int, dict[str, Any]] = {
    # Small networks for smoke runs, which are mostly compilation.
    6: {"name": "resnet18", "stage_sizes": (1, 1)},
    10: {"name": "resnet18", "stage_sizes": (1, 1, 1, 1)},
    18: {"name": "resnet18"},
    34: {"name": "resnet34"},
    50: {"name": "resnet50"},
}
# Names in `dyn.models.NETWORKS` that differ from those of the settings.
PUBLISHED_NAMES = {"mobilenet_v3": "mobilenet_v3_large", "dymn": "dymn10_im"}
# The networks that take any of `CONVS`; `dymn` takes some.
NETWORKS = ("resnet", "vgg16", *MOBILE_NETWORKS)
# The field `remat` of a network, by `config.model.remat`.
REMAT = {"none": False, "cheap": jax.checkpoint_policies.dots_saveable, "blocks": True}
# Layers whose authors replace depthwise convolutions too.
MIXTURES = (layers.CondConv, layers.DynamicConv, layers.ODConv)


def make_network(config: ConfigDict, num_classes: int, spatial_axes: int) -> nn.Module:
    """Returns the network that `config.model`, `.conv`, `.attention` and `.classifier` describe.

    With `config.model.hidden` it is a `Classifier` over the network's features.
    """
    return models.create_model(**describe_network(config, num_classes, spatial_axes))


def describe_network(config: ConfigDict, num_classes: int, spatial_axes: int) -> dict[str, Any]:
    """Returns the arguments of `dyn.models.create_model` for the network of a config.

    They are of types that JSON has, unless `config.model.remat` is 'cheap'.
    """
    backbone = describe_backbone(config) | {"spatial_axes": spatial_axes}
    ends = {
        "num_classes": num_classes,
        "dense": describe_layer(config, "classifier", CLASSIFIERS),
        "dropout": config.model.dropout,
    }
    if not config.model.hidden:
        return backbone | ends
    hidden = {"name": "classifier", "hidden": config.model.hidden, "dtype": config.dtype}
    return {**hidden, **ends, "backbone": backbone}


def describe_backbone(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `dyn.models.create_model` that say nothing about the end of the network."""
    network, conv = config.model.network, describe_layer(config, "conv", CONVS)
    fields = {"stem": config.model.stem, "dtype": config.dtype, "conv": conv}
    if network == "vgg16":
        return {"name": network, "width": config.model.width, **fields}
    if config.model.remat != "none":
        fields["remat"] = REMAT[config.model.remat]
    if "attention" in config:
        if config.model.context != "input" and config.conv.name == "conv":
            raise UserError(
                f"--config.model.context={config.model.context}: a static convolution looks at no "
                "context; leave it at input, or choose another --config.conv.name."
            )
        if (attention := describe_layer(config, "attention", ATTENTIONS)) is not None:
            fields["attention"] = attention
        fields |= {name: config.model[name] for name in ("context", "representation")}
    if network in MOBILE_NETWORKS:
        if config.model.get("padding") == "same":
            fields |= TENSORFLOW
        if most := config.model.get("max_blocks"):
            fields["max_blocks"] = most
        # Its width is a factor; 64 is as published, as for the other networks.
        width = {"width": config.model.width / 64}
        name = PUBLISHED_NAMES.get(network, network)
        return {"name": name, **width, **fields, **_describe_mobile_convs(config, conv)}
    if config.model.shortcut == "conv":
        fields["shortcut"] = conv
    return {**RESNETS[config.model.depth], "width": config.model.width, **fields}


def _describe_mobile_convs(config: ConfigDict, conv: dict[str, Any]) -> dict[str, Any]:
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
            unsqueezed = {**conv, "reduction": None}
            fields |= {"conv": unsqueezed, "depthwise": unsqueezed}
    elif layer is layers.CondConv and network.startswith("efficientnet"):
        # As `make_condconv_fields` has it.
        experts = config.conv.get("num_kernels", layer.num_kernels)
        fields["router"] = {"name": "dense", "features": experts}
        fields["dynamic_stages"] = (5, 6, 7)
    elif layer is layers.DCDConv:
        # Neither the first stage nor the last convolution.
        fields["dynamic_stages"] = tuple(range(2, 7 if network == "mobilenet_v3" else 8))
        if "pool" not in config.conv:
            fields["conv"] = {**conv, "pool": None}
    return fields


def build_with_conv(
    config: ConfigDict,
    build: Callable[[Callable[..., nn.Module]], nn.Module],
    spatial_axes: int,
) -> nn.Module:
    """Returns the network that `build` makes of the convolution of `config.conv`.

    With warehouses, there is one for each stage.
    """
    conv = make_layer(config, "conv", CONVS)
    if conv.func is not layers.WarehouseConv:
        return build(conv)
    # Kernels do not depend on the sizes of the inputs.
    example = jax.ShapeDtypeStruct((1, *(32,) * spatial_axes, 3), jnp.float32)
    return layers.share_kernels(build, example, **conv.keywords)


def make_layer(
    config: ConfigDict, section: str, known: Mapping[str, type | None]
) -> partial | None:
    """Returns the layer that `config.<section>.name` names, with the fields beside the name.

    Raises:
        UserError: if the name or a field does not exist.
    """
    described = describe_layer(config, section, known)
    return None if described is None else partial(known[described.pop("name")], **described)


def describe_layer(
    config: ConfigDict, section: str, known: Mapping[str, type | None]
) -> dict[str, Any] | None:
    """Returns name and fields of the layer of `config.<section>`; None for no layer.

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
    return {"name": name, **fields}


def apply_in_training(
    model: nn.Module,
    variables: Variables,
    inputs: Array,
    rng: Array,
    head_only: bool = False,
    information: float = 0.0,
) -> tuple[Array, dict[str, Any]]:
    """Returns the outputs for a batch, float32, and the variable collections that changed.

    With `information`, this weight times the `information_loss` of its mixtures is among their `losses`.
    """
    outputs, changed = model.apply(
        variables,
        inputs,
        train=True,
        # Networks for series do not take the argument.
        **({"head_only": True} if head_only else {}),
        # Layers with norms of their own leave the running averages alone where these cannot change.
        mutable=[
            "losses",
            *([] if head_only else ["batch_stats"]),
            *(["intermediates"] if information else []),
        ],
        rngs={"dropout": rng},
    )
    changed = dict(changed)
    if information:
        loss = information * information_loss(changed.pop("intermediates", {}))
        changed["losses"] = {**changed.get("losses", {}), "information": loss}
    return outputs.astype(jnp.float32), changed
