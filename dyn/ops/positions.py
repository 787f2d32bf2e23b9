"""Convolution with a kernel per position, which groups of channels share."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.ops import platforms
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.geometry import Array, Geometry, Padding, check_floating, resolve_geometry
from dyn.ops.sharding import automate_sharding, mesh_axes

# More taps than these are added up in a loop over the rows of the kernel. In one piece they are read in one
# pass, which is best on a CPU; a compiler for TPUs takes long and keeps the weights of all taps of a piece.
UNROLLED_TAPS = {"tpu": 9}
UNROLLED_TAPS_ELSEWHERE = 64


def convolve_positions(
    inputs: Array,
    kernels: Array,
    *,
    scale: Array | None = None,
    shift: Array | None = None,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
) -> Array:
    """Convolves each channel with a kernel of its own at each output position.

        y[b, p, c] = sum_t x[b, read(p, t), c] (scale[b, t, c] kernels[b, p, t, g] + shift[b, t, c])

    where channel c is in the g-th of G runs of C / G channels. `scale` and `shift` are the factored part of a
    kernel, which differs between channels and not between positions: the product is never stored.

    Neither the patches nor anything else of the size of T times the inputs is stored, in the forward pass or
    for the backward one, which keeps only the arguments. Sums are taken in float32 or wider. Gradients are
    for reverse mode; `jax.jvp` is refused.

    Args:
        inputs: x, `[B, *spatial, C]` with one, two or three spatial axes.
        kernels: `[B, *out, *k, G]`; rounded to the inputs' dtype.
        scale: `[B, *k, C]`; None for one.
        shift: `[B, *k, C]`; None for zero.
        strides, padding, input_dilation, kernel_dilation: as in `flax.linen.Conv`.

    Returns:
        `[B, *out, C]` in the inputs' dtype.

    Raises:
        ValueError: if shapes do not fit together, G does not divide C, or inputs are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import convolve_positions
        >>> x, kernels = jnp.ones((2, 8, 8, 6)), jnp.ones((2, 4, 4, 3, 3, 2))
        >>> y = convolve_positions(x, kernels, strides=2, padding=1)
        >>> y.shape, float(y[0, 0, 0, 0]), float(y[0, 1, 1, 0])
        ((2, 4, 4, 6), 4.0, 9.0)
    """
    rank = inputs.ndim - 2
    if kernels.ndim != 2 * rank + 2:
        raise ValueError(
            f"kernels must be [B, *out, *k, G] with as many axes in out and in k as inputs {inputs.shape} "
            f"have spatial ones; got {kernels.shape}."
        )
    size = kernels.shape[1 + rank : -1]
    geometry = resolve_geometry(
        inputs.shape[1:-1], size, strides, padding, input_dilation, kernel_dilation
    )
    return convolve_positions_with_geometry(inputs, kernels, scale, shift, geometry)


def convolve_positions_with_geometry(
    inputs: Array, kernels: Array, scale: Array | None, shift: Array | None, geometry: Geometry
) -> Array:
    """Computes `convolve_positions` for a geometry that is resolved already."""
    check_floating(inputs=inputs)
    batch, channels = inputs.shape[0], inputs.shape[-1]
    if kernels.shape[:-1] != (batch, *geometry.out, *geometry.size):
        raise ValueError(
            f"kernels must be [B, *out, *k, G] = {(batch, *geometry.out, *geometry.size, 'G')}; got "
            f"{kernels.shape}."
        )
    if kernels.shape[-1] < 1 or channels % kernels.shape[-1]:
        raise ValueError(
            f"kernels {kernels.shape} are for {kernels.shape[-1]} groups, which must divide the "
            f"{channels} channels of the inputs."
        )
    for name, weights in {"scale": scale, "shift": shift}.items():
        if weights is not None and weights.shape != (batch, *geometry.size, channels):
            raise ValueError(
                f"{name} must be [B, *k, C] = {(batch, *geometry.size, channels)}; got {weights.shape}."
            )
    inputs = geometry.pad_edges(inputs)
    return _position_conv(inputs, kernels, scale, shift, geometry)


# The jit gives the operation a name in the jaxpr, so that `dyn.diagnostics` can count it.
@partial(jax.jit, static_argnames=("geometry",))
def _position_conv(inputs, kernels, scale, shift, geometry: Geometry) -> Array:
    def convolve(inputs, kernels, scale, shift):
        wide, taps = float32_or_wider(inputs), geometry.taps
        kernels = kernels.astype(inputs.dtype)
        kernels = kernels.reshape(*kernels.shape[: 1 + geometry.rank], taps, kernels.shape[-1])
        # Their gradients are sums over all positions.
        scale, shift = (
            None if a is None else a.astype(wide).reshape(a.shape[0], taps, a.shape[-1])
            for a in (scale, shift)
        )
        return _add_taps(inputs, (kernels, scale, shift), geometry)

    axes = mesh_axes(inputs)[:-1]
    return automate_sharding(convolve, inputs, kernels, scale, shift, axes=axes)


Weights = tuple[Array, Array | None, Array | None]
"""Kernels `[B, *out, T, G]`, and scale and shift `[B, T, C]` or None."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _add_taps(x: Array, weights: Weights, geometry: Geometry) -> Array:
    """Adds up the products of the inputs and weights of all taps: `[B, *out, C]`."""
    wide, channels = float32_or_wider(x), x.shape[-1]
    if _is_empty((x.shape[0], *geometry.out)):
        return jnp.zeros((x.shape[0], *geometry.out, channels), x.dtype)
    padded = _pad_zeros(x, geometry)

    def add(total, starts, weights):
        for n, start in enumerate(starts):
            one_tap = jax.tree.map(lambda a, n=n: a[..., n, :], weights)
            read = _read(padded, start, geometry)
            total += read.astype(wide) * _make_weights(one_tap, channels, wide)
        return total

    total = jnp.zeros((x.shape[0], *geometry.out, channels), wide)
    starts = list(_tap_starts(geometry))
    if geometry.taps <= UNROLLED_TAPS.get(platforms.find_platform(), UNROLLED_TAPS_ELSEWHERE):
        return add(total, starts, weights).astype(x.dtype)
    rows = geometry.size[0]
    in_row = geometry.taps // rows

    def add_row(total, row):
        number, weights = row
        first = number * geometry.kernel_dilation[0]
        return add(total, [(first, *start[1:]) for start in starts[:in_row]], weights), None

    by_row = _split_taps(weights, rows)
    return lax.scan(add_row, total, (jnp.arange(rows), by_row))[0].astype(x.dtype)


def _keep_arguments(x: Array, weights: Weights, geometry: Geometry) -> tuple[Array, tuple]:
    return _add_taps(x, weights, geometry), (x, weights)


def _differentiate(geometry: Geometry, kept: tuple, g: Array) -> tuple[Array, Weights]:
    """Computes the gradients of the inputs and the weights, one tap after another."""
    x, weights = kept
    if _is_empty(g.shape):
        return jnp.zeros_like(x), jax.tree.map(jnp.zeros_like, weights)
    wide, channels = float32_or_wider(x), x.shape[-1]
    padded, g = _pad_zeros(x, geometry), g.astype(wide)
    spread = [(0, 0, stride - 1) for stride in geometry.strides]

    def pull_tap(total, tap):
        start, weights = tap
        start = tuple(start)
        make = partial(_make_weights, channels=channels, dtype=wide)
        made, pull = jax.vjp(make, weights)
        products = lax.pad(g * made, jnp.zeros((), wide), [(0, 0, 0), *spread, (0, 0, 0)])
        window = lax.dynamic_slice(total, (0, *start, 0), products.shape)
        total = lax.dynamic_update_slice(total, window + products, (0, *start, 0))
        return total, pull(_read(padded, start, geometry).astype(wide) * g)[0]

    starts = jnp.asarray(np.asarray(list(_tap_starts(geometry))))
    by_tap = jax.tree.map(lambda a: a[..., 0, :], _split_taps(weights, geometry.taps))
    total, by_tap = lax.scan(pull_tap, jnp.zeros(padded.shape, wide), (starts, by_tap))
    total = jax.linear_transpose(lambda x: _pad_zeros(x, geometry), x.astype(wide))(total)[0]
    return total.astype(x.dtype), jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2), by_tap)


_add_taps.defvjp(_keep_arguments, _differentiate)


def _is_empty(shape: Sequence[int]) -> bool:
    """Returns whether an axis is empty; symbolic sizes, which cannot be compared, are not."""
    return any(isinstance(n, int) and n == 0 for n in shape)


def _pad_zeros(x: Array, geometry: Geometry) -> Array:
    """Pads and dilates the inputs with zeros."""
    edges = [
        (before, after, dilation - 1)
        for (before, after), dilation in zip(geometry.padding, geometry.input_dilation, strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _tap_starts(geometry: Geometry) -> Iterator[tuple[int, ...]]:
    """Yields where the inputs of each tap begin in the padded inputs, in C order."""
    for tap in itertools.product(*map(range, geometry.size)):
        yield tuple(t * d for t, d in zip(tap, geometry.kernel_dilation, strict=True))


def _read(padded: Array, start: Sequence[Array | int], geometry: Geometry) -> Array:
    """Reads the inputs of one tap: `[B, *out, C]`."""
    for axis, (n, first, stride) in enumerate(
        zip(geometry.out, start, geometry.strides, strict=True), start=1
    ):
        length = (n - 1) * stride + 1
        if isinstance(first, int):
            padded = lax.slice_in_dim(padded, first, first + length, stride, axis)
        else:
            padded = lax.dynamic_slice_in_dim(padded, first, length, axis)
            padded = lax.slice_in_dim(padded, 0, length, stride, axis)
    return padded


def _split_taps(weights: Weights, number: int) -> Weights:
    """Cuts the axis of taps into equal parts along a new first axis."""

    def split(a: Array) -> Array:
        a = a.reshape(*a.shape[:-2], number, a.shape[-2] // number, a.shape[-1])
        return jnp.moveaxis(a, -3, 0)

    return jax.tree.map(split, weights)


def _make_weights(weights: tuple, channels: int, dtype: jnp.dtype) -> Array:
    """Makes the weights of one tap, `[B, *out, C]`, of a kernel `[B, *out, G]`, and scale and shift."""
    kernel, scale, shift = weights
    made = _repeat_groups(kernel, channels).astype(dtype)
    shape = (kernel.shape[0], *(1,) * (kernel.ndim - 2), channels)
    if scale is not None:
        made = made * scale.reshape(shape)
    if shift is not None:
        made = made + shift.reshape(shape)
    return made


def _repeat_groups(kernel: Array, channels: int) -> Array:
    """Repeats the weight of each group for its channels: `[..., G]` to `[..., C]`."""
    groups = kernel.shape[-1]
    if groups == channels:
        return kernel
    if groups > 1 and platforms.find_platform() == "tpu":
        # Channels in groups would fill a few of a TPU's lanes each: it would store all taps, padded.
        repeat = jnp.repeat(jnp.eye(groups, dtype=kernel.dtype), channels // groups, axis=-1)
        precision = None if kernel.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
        return jnp.matmul(kernel, repeat, precision=precision)
    kernel = jnp.broadcast_to(kernel[..., None], (*kernel.shape, channels // groups))
    return kernel.reshape(*kernel.shape[:-2], channels)
