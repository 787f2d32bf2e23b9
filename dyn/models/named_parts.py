"""The layers that a network can be given by name, so that a plain text such as JSON describes the network."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dyn import layers
from dyn.models.backbone import convolve_spatially
from dyn.models.efficientnet import Router
from dyn.models.selective_resnet import PooledConv

CONVOLUTIONS: Mapping[str, Callable[..., nn.Module]] = {
    "conv": layers.Conv,
    "condconv": layers.CondConv,
    "dcd": layers.DCDConv,
    "ddf": layers.DecoupledDynamicFilter,
    "deformable": layers.DeformableConv,
    "dyconv": layers.DynamicConv,
    "fdconv": layers.FDConv,
    "fdy": layers.FrequencyDynamicConv,
    "gated": layers.GatedConv,
    "involution": layers.Involution,
    "odconv": layers.ODConv,
    "pixel": layers.PixelDynamicConv,
    "rotated": layers.RotatedConv,
    "selective": layers.SelectiveKernel,
    "sequence_dynamic": layers.SequenceDynamicConv,
    "spectral_norm": layers.SpectralNormConv,
    "warehouse": layers.WarehouseConv,
}
ATTENTIONS: Mapping[str, Callable[..., nn.Module]] = {
    "squeeze_excite": layers.SqueezeExcite,
    "cbam": layers.CBAM,
    "coordinate": layers.CoordinateAttention,
    "efficient_channel": layers.EfficientChannelAttention,
}
CLASSIFIERS: Mapping[str, Callable[..., nn.Module]] = {
    "dense": nn.Dense,
    "condconv": layers.CondDense,
    "dcd": layers.DCDDense,
    "dyconv": layers.DynamicDense,
    "warehouse": layers.WarehouseDense,
}
# Layers that convolve each channel by itself: 1x1 convolutions, which mix the channels, stay static.
BY_CHANNEL = (layers.DecoupledDynamicFilter, layers.Involution, layers.SequenceDynamicConv)

_CONV_FIELDS = ("conv", "depthwise", "strided", "first_conv", "shortcut")
PARTS: Mapping[str, Mapping[str, Callable[..., nn.Module]]] = {
    **dict.fromkeys(_CONV_FIELDS, CONVOLUTIONS),
    "shortcut": {**CONVOLUTIONS, "pooled": PooledConv},
    "attention": ATTENTIONS,
    "activation": {"dynamic_relu": layers.DynamicReLU},
    "dense": CLASSIFIERS,
    "router": {"dense": Router},
}
"""The names that each field of a network takes."""


def resolve_field(field: str, value: Any, shared: Callable[..., nn.Module] | None = None) -> Any:
    """Returns the value of a network's field, from one that JSON can hold.

    A mapping `{"name": "odconv", "num_kernels": 4}` becomes `partial(ODConv, num_kernels=4)`, the name of a
    dtype the dtype, a list a tuple. Other values, functions among them, are returned as they are.

    Args:
        field: name of the field.
        value: its value.
        shared: stands for each `{"name": "warehouse", ...}`: the convolutions of a network share warehouses.

    Raises:
        ValueError: for an unknown name, of a layer or a dtype.
    """
    if isinstance(value, list):
        return tuple(value)
    if field == "dtype" and isinstance(value, str):
        try:
            return jnp.dtype(value)
        except TypeError as error:
            raise ValueError(
                f"dtype={value!r} is unknown: write 'float32', 'bfloat16' or 'float16'."
            ) from error
    if field not in PARTS or not isinstance(value, Mapping):
        return value
    options = {name: resolve_field(name, v) for name, v in value.items() if name != "name"}
    make = find_named(PARTS[field], value.get("name"), f"{field}: the layer")
    if shared is not None and make is layers.WarehouseConv:
        return shared
    part = partial(make, **options)
    return convolve_spatially(part) if make in BY_CHANNEL else part


def find_warehouse(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the options of the warehouses that a network's convolutions share; None if it has none.

    Raises:
        ValueError: if they have different options.
    """
    found: list[dict[str, Any]] = []
    for field, value in fields.items():
        if isinstance(value, Mapping) and field == "backbone":
            inner = find_warehouse(value)
            found += [] if inner is None else [inner]
        elif isinstance(value, Mapping) and field in _CONV_FIELDS:
            options = {name: resolve_field(name, v) for name, v in value.items()}
            found += [options] if options.pop("name", None) == "warehouse" else []
    if any(options != found[0] for options in found):
        raise ValueError(
            f"the convolutions of a network share their warehouses, and must have equal options: got {found}."
        )
    return found[0] if found else None


def name_warehouse(path: Sequence[str]) -> str:
    """Names the warehouse of a layer: `by_stage` in the blocks of a residual network, elsewhere its stage."""
    if any("_block" in part for part in path):
        return layers.by_stage(tuple(path))
    return next(part for part in path if part != "backbone").partition("_")[0]


def find_named(table: Mapping[str, Any], name: Any, kind: str) -> Any:
    """Returns the entry of a table.

    Raises:
        ValueError: if there is none; it suggests the nearest names.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    if name is None:
        raise ValueError(f"{kind} has no name{suggest_names('', table)}")
    raise ValueError(f"{kind} {name!r} is unknown{suggest_names(name, table)}")


def suggest_names(name: Any, known: Iterable[str]) -> str:
    """Ends a sentence about an unknown name with the nearest known ones, or with all if they are few.

    Only networks are many.
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if near:
        return f": did you mean {' or '.join(map(repr, near))}?"
    if len(known) <= 20:
        return f": write one of {', '.join(known)}."
    return "; dyn.models.list_models() lists the known ones."
