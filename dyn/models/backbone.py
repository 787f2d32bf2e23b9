"""Parts that the networks share: types of fields, the norm, the call of a block, the check of the input."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.tree_util import Partial

from dyn.layers.attention import he_normal_fan_out
from dyn.layers.norms import BatchNorm
from dyn.layers.static_conv import Conv

ConvFactory = Callable[..., nn.Module]
"""`conv(features, kernel_size, strides, padding=..., use_bias=..., dtype=..., name=...)`, as `nn.Conv`."""

Remat = bool | Callable[..., Any]
"""The results of a block that the backward pass computes again: see `call_block`."""


def make_batch_norm(train: bool, dtype: Any, **fields: Any) -> Callable[..., BatchNorm]:
    """Returns a factory of batch norms, with torch's momentum and epsilon unless told otherwise.

    Args:
        train: whether norms use (and update) the statistics of the batch.
        dtype: dtype of the computation; None for the inputs'.
        fields: other fields of the norm.
    """
    return partial(BatchNorm, use_running_average=not train, dtype=dtype, **fields)


def make_norms(
    norm: Callable[..., nn.Module] | None, train: bool, dtype: Any, **fields: Any
) -> Callable[..., nn.Module]:
    """Returns a factory of a network's norms.

    Args:
        norm: makes a norm, such as `partial(GroupNorm, num_groups=32)`; None for batch norms.
        train: as in `make_batch_norm`.
        dtype: dtype of the computation; None for the inputs'.
        fields: other fields of a batch norm.
    """
    if norm is None:
        return make_batch_norm(train, dtype, **fields)
    return partial(norm, dtype=dtype)


def check_output_stride(output_stride: int | None, stem_stride: int) -> None:
    """Raises a ValueError for an output stride below that of the stem, whose convolution is not dilated."""
    if output_stride is not None and output_stride < stem_stride:
        raise ValueError(
            f"output_stride={output_stride} is below {stem_stride}, the stride of the stem: choose "
            f"{stem_stride} or more, or stem='small'."
        )


def call_block(block: nn.Module, remat: Remat, *inputs: Any) -> Any:
    """Returns `block(*inputs)`, of which the backward pass may compute parts again.

    Names, variables and random numbers are those of the call itself.

    Args:
        block: a module with a scope. Modules in its fields, or in a `jax.tree_util.Partial` there, may
            belong to the network around it.
        remat: False keeps what the backward pass needs; True keeps only the inputs; a policy of
            `jax.checkpoint_policies` chooses.
        inputs: arrays, or trees of them.
    """
    if remat is False:
        return block(*inputs)
    policy = None if remat is True else remat
    return nn.remat(_call, policy=policy)(block, *inputs)


def _call(block: nn.Module, *inputs: Any) -> Any:
    return block(*inputs)


def bind_fields(make: ConvFactory, **fields: Any) -> Partial:
    """Returns `partial(make, **fields)` in a form that shows the modules in `make` to `call_block`."""
    return Partial(_make_layer, make, **fields)


def _make_layer(make: ConvFactory, *args: Any, **fields: Any) -> nn.Module:
    return make(*args, **fields)


def convolve_spatially(conv: ConvFactory, size: int | None = None) -> ConvFactory:
    """Returns a factory of `conv` for kernels larger than one position, and of static ones for the others.

    It is for layers that convolve each channel by itself, `Involution` and `DecoupledDynamicFilter`, in
    bottlenecks: their 1x1 convolutions mix the channels.

    Args:
        conv: a callable with `nn.Conv`'s arguments.
        size: another kernel size along each spatial axis, an odd number; None for the network's own.

    Example:
        >>> from dyn.layers import DecoupledDynamicFilter
        >>> from dyn.models import ResNet50
        >>> from dyn.models.backbone import convolve_spatially
        >>> net = ResNet50(num_classes=10, conv=convolve_spatially(DecoupledDynamicFilter))
    """
    return partial(_make_spatial, conv, size)


def _make_spatial(
    conv: ConvFactory,
    size: int | None,
    features: int,
    kernel_size: Sequence[int],
    strides: int = 1,
    **fields: Any,
) -> nn.Module:
    if set(kernel_size) == {1}:
        fields.setdefault("kernel_init", he_normal_fan_out)
        return Conv(features, kernel_size, strides, **fields)
    if size is not None:
        kernel_size = (size,) * len(kernel_size)
        fields["padding"] = size // 2 * fields.get("kernel_dilation", 1)
    return conv(features, kernel_size, strides, **fields)


def check_input(
    x: jax.Array,
    spatial_axes: int,
    stem: str | Callable[..., nn.Module],
    stems: tuple[str, ...] = ("imagenet", "small"),
) -> None:
    """Checks the axes of a backbone's input and the name of its stem.

    Raises:
        ValueError: if x is not `[B, *spatial, C]`, or the stem is unknown.
    """
    if x.ndim != spatial_axes + 2:
        raise ValueError(
            f"the network takes [B, *spatial, C] with spatial_axes={spatial_axes}; got shape {x.shape}."
        )
    if isinstance(stem, str) and stem not in stems:
        known = f"{', '.join(map(repr, stems[:-1]))} or {stems[-1]!r}"
        raise ValueError(f"stem={stem!r} is unknown: write {known}.")
