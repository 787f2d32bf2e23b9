"""Deformable convolution: a convolution whose kernel positions move at each output position.

Values between inputs are interpolated linearly along each axis, and inputs beyond the edges are zero, so
that a position leaves the input gradually, over one input's width. Nothing here depends on the number of
spatial axes.

The positions are visited one after another, in a loop that the gradient repeats: what is sampled for one of
them is in memory at a time, and not for all T of a kernel.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.ops.dtypes import float32_or_wider
from dyn.ops.geometry import Geometry, Padding, check_floating, resolve_geometry
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


def deform_conv(
    inputs: Array,
    kernel: Array,
    offsets: Array,
    mask: Array | None = None,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Convolves with kernel positions that are moved by offsets and weighted by a mask.

        y[p] = sum_t mask[p, t] x(s p - before + d t + offsets[p, t]) W_t

    where x(q) is interpolated linearly between the inputs around q, with zeros beyond the edges, s are the
    strides, d the dilations and `before` the padding. With offsets of zero it is a convolution. An input
    that the padding repeats ('CIRCULAR', 'REFLECT') or that is dilated is so before it is interpolated.

    Args:
        inputs: `[B, *spatial, I]`.
        kernel: `[*k, I/G, O]`.
        offsets: `[B, *out, Q, T, n]`: for each of Q equal runs of input features and each of the T kernel
            positions in C order, a distance along each of the n spatial axes, in inputs.
        mask: `[B, *out, Q, T]`, used as it is; None for ones.
        strides, padding, input_dilation, kernel_dilation, feature_group_count: as in `nn.Conv`.
        precision: of the products with the kernel.

    Returns:
        `[B, *out, O]`, in the inputs' dtype. Positions and interpolation are computed in float32 or wider.

    Raises:
        ValueError: if offsets, mask or kernel do not fit, or inputs are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import deform_conv
        >>> x = jnp.arange(4.0).reshape(1, 4, 1)
        >>> offsets = jnp.full((1, 4, 1, 1, 1), 0.5)
        >>> deform_conv(x, jnp.ones((1, 1, 1)), offsets)[0, :, 0].tolist()
        [0.5, 1.5, 2.5, 1.5]
    """
    check_floating(inputs=inputs)
    geometry = resolve_geometry(
        inputs.shape[1:-1],
        kernel.shape[:-2],
        strides,
        padding,
        input_dilation,
        kernel_dilation,
        feature_group_count,
    )
    if kernel.shape[-2] * geometry.groups != inputs.shape[-1] or kernel.shape[-1] % geometry.groups:
        raise ValueError(
            f"kernel of shape {kernel.shape} and feature_group_count={geometry.groups} do not fit inputs of "
            f"shape {inputs.shape}."
        )
    check_offsets(inputs, offsets, mask, geometry.out, geometry.taps, "kernel positions")

    def compute(inputs: Array, kernel: Array, offsets: Array, mask: Array | None) -> Array:
        x, grid = pad_input(inputs, geometry)
        width = float32_or_wider(x)
        by_tap = kernel.reshape(geometry.taps, *kernel.shape[-2:])

        def add_tap(y: Array, sample: Array, tap: Array) -> Array:
            inner, outer = tap.shape
            grouped = sample.reshape(*sample.shape[:2], grid.groups, inner)
            weights = tap.reshape(inner, grid.groups, outer // grid.groups)
            more = jnp.einsum(
                "bpgi,igo->bpgo",
                grouped,
                weights,
                precision=precision,
                preferred_element_type=width,
            )
            return y + more.reshape(y.shape)

        y = jnp.zeros((x.shape[0], grid.positions, kernel.shape[-1]), width)
        y = visit_points(add_tap, y, x, offsets, mask, list_points(grid), by_tap)
        return y.reshape(x.shape[0], *grid.out, kernel.shape[-1]).astype(x.dtype)

    return automate_sharding(compute, inputs, kernel, offsets, mask, axes=mesh_axes(inputs)[:-1])


def deform_aggregate(
    inputs: Array,
    offsets: Array,
    mask: Array,
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Array:
    """Sums inputs around each output position with weights of that position, at moved points.

        y[p] = sum_t mask[p, t] x(s p - before + c + offset_scale (d t - c + offsets[p, t]))

    with c = d (k - 1) // 2, the middle of the kernel: `offset_scale` spreads its points as well as the
    offsets. Features are summed by themselves. This is the core of DCNv3 and DCNv4, with their order of
    points: the last axis is outermost, and comes first in an offset.

    Args:
        inputs: `[B, *spatial, C]`.
        offsets: `[B, *out, G, K, n]`: for each of G equal runs of features and each of K points a distance
            along each of the n spatial axes, the last axis first, in inputs.
        mask: `[B, *out, G, K]`, used as it is.
        kernel_size, strides, padding, kernel_dilation: as in `nn.Conv`; paddings must add zeros.
        offset_scale: spread of the points.
        remove_center: whether the middle of an odd kernel is left out.

    Returns:
        `[B, *out, C]`, in the inputs' dtype.

    Raises:
        ValueError: if offsets or mask do not fit, inputs are not floating point, or the kernel has no
            middle to leave out.
    """
    check_floating(inputs=inputs)
    size = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
    geometry = resolve_geometry(inputs.shape[1:-1], size, strides, padding, 1, kernel_dilation)
    if geometry.mode is not None:
        raise ValueError(f"padding={padding!r} repeats inputs; write one that adds zeros.")
    if remove_center and not all(k % 2 for k in size):
        raise ValueError(f"kernel_size={size} has no middle: write remove_center=False.")
    points = list_spread_points(geometry, offset_scale, remove_center)
    check_offsets(inputs, offsets, mask, geometry.out, len(points), "points")

    def compute(inputs: Array, offsets: Array, mask: Array) -> Array:
        width = float32_or_wider(inputs)
        y = jnp.zeros((inputs.shape[0], geometry.positions, inputs.shape[-1]), width)
        moves = offset_scale * jnp.flip(offsets, -1)

        def add(y: Array, sample: Array) -> Array:
            return y + sample.astype(width)

        y = visit_points(add, y, inputs, moves, mask, points)
        return y.reshape(inputs.shape[0], *geometry.out, inputs.shape[-1]).astype(inputs.dtype)

    return automate_sharding(compute, inputs, offsets, mask, axes=mesh_axes(inputs)[:-1])


def list_spread_points(geometry: Geometry, scale: float, remove_center: bool) -> np.ndarray:
    """Returns the points `[K, *out, n]` of `deform_aggregate` without offsets, in its order."""
    points = list_points(geometry)
    reach = np.array(geometry.kernel_dilation) * (np.array(geometry.size) - 1)
    middle = points[0] + reach // 2
    spread = middle + scale * (points - middle)
    spread = spread.reshape(*geometry.size, *geometry.out, geometry.rank)
    order = [*range(geometry.rank)[::-1], *range(geometry.rank, spread.ndim)]
    spread = spread.transpose(order).reshape(geometry.taps, *geometry.out, geometry.rank)
    return np.delete(spread, geometry.taps // 2, axis=0) if remove_center else spread


def check_offsets(
    inputs: Array,
    offsets: Array,
    mask: Array | None,
    out: tuple[int, ...],
    points: int,
    what: str,
) -> None:
    """Checks the shapes of offsets `[B, *out, Q, T, n]` and of a mask `[B, *out, Q, T]`.

    Raises:
        ValueError: for the first that does not fit.
    """
    batch, rank, features = inputs.shape[0], inputs.ndim - 2, inputs.shape[-1]
    groups = offsets.shape[-3] if offsets.ndim == rank + 4 else 0
    if not groups or offsets.shape != (batch, *out, groups, points, rank) or features % groups:
        raise ValueError(
            f"offsets must be {(batch, *out)} + (groups, {points}, {rank}), for groups that divide the "
            f"{features} input features, {points} {what} and {rank} spatial axes; got shape {offsets.shape}."
        )
    if mask is not None and mask.shape != offsets.shape[:-1]:
        raise ValueError(f"mask must have shape {offsets.shape[:-1]}; got {mask.shape}.")


def pad_input(x: Array, geometry: Geometry) -> tuple[Array, Geometry]:
    """Repeats inputs at the edges and puts zeros between them, as a geometry says.

    Returns:
        The new inputs, and the geometry without what is done.
    """
    x = geometry.pad_edges(x)
    if max(geometry.input_dilation) > 1:
        inner = [(0, 0, dilation - 1) for dilation in geometry.input_dilation]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
    ones = (1,) * geometry.rank
    return x, dataclasses.replace(
        geometry, spatial=x.shape[1:-1], input_dilation=ones, extension=(), mode=None
    )


def list_points(geometry: Geometry) -> np.ndarray:
    """Returns where each kernel position lies on the inputs without offsets: `[T, *out, n]`."""
    taps = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), axis=-1)
    places = np.stack(np.meshgrid(*map(np.arange, geometry.out), indexing="ij"), axis=-1)
    before = np.array([pair[0] for pair in geometry.padding])
    taps = taps.reshape(-1, geometry.rank) * np.array(geometry.kernel_dilation) - before
    expanded = taps.reshape(-1, *(1,) * geometry.rank, geometry.rank)
    return expanded + places[None] * np.array(geometry.strides)


def visit_points(
    add: Callable[..., Array],
    y: Array,
    x: Array,
    offsets: Array,
    mask: Array | None,
    points: np.ndarray,
    *others: Array,
) -> Array:
    """Samples inputs at each of T points in turn, and adds what `add` makes of them.

    Args:
        add: `add(y, samples, *other)`, with samples `[B, P, C]` at the P output positions.
        y: what to add to.
        x: inputs `[B, *spatial, C]`.
        offsets: `[B, *out, Q, T, n]`.
        mask: `[B, *out, Q, T]` or None.
        points: `[T, *out, n]`, the points without offsets.
        others: arrays `[T, ...]`, of which `add` gets the entry of the point.
    """
    dtype = float32_or_wider(x, offsets)
    batch, rank = x.shape[0], x.ndim - 2
    positions = math.prod(points.shape[1:-1])
    groups, taps = offsets.shape[-3], len(points)
    base = jnp.asarray(points.reshape(taps, 1, positions, 1, rank), dtype)
    moved = offsets.reshape(batch, positions, *offsets.shape[-3:])
    weights = None
    if mask is not None:
        weights = jnp.moveaxis(mask.reshape(batch, positions, groups, taps), -1, 0)

    def step(y: Array, point: tuple) -> tuple[Array, None]:
        base, offset, weight, *other = point
        sample = partial(sample_inputs, dtype=dtype)
        return add(y, sample(x, base + offset.astype(dtype), weight), *other), None

    points_first = (base, jnp.moveaxis(moved, -2, 0), weights, *others)
    return lax.scan(jax.checkpoint(step), y, points_first)[0]


def sample_inputs(x: Array, where: Array, weights: Array | None, dtype: jnp.dtype) -> Array:
    """Interpolates inputs linearly at one point for each output position and group of features.

    Args:
        x: `[B, *spatial, C]`; zero beyond its edges.
        where: `[B, P, Q, n]`, coordinates in inputs.
        weights: `[B, P, Q]`, multiplied onto the values; None for ones.
        dtype: of the interpolation.

    Returns:
        `[B, P, C]`.
    """
    batch, *spatial, features = x.shape
    groups = where.shape[2]
    flat = x.reshape(batch, math.prod(spatial), groups, features // groups)
    low = jnp.floor(where)
    part = where - low
    total = jnp.zeros((*where.shape[:3], flat.shape[-1]), dtype)
    for corner in itertools.product((0, 1), repeat=len(spatial)):
        index = jnp.zeros(where.shape[:3], jnp.int32)
        weight = jnp.ones(where.shape[:3], dtype) if weights is None else weights.astype(dtype)
        for axis, (upper, size) in enumerate(zip(corner, spatial, strict=True)):
            place = low[..., axis] + upper
            inside = (place >= 0) & (place <= size - 1)
            share = part[..., axis] if upper else 1 - part[..., axis]
            weight = weight * jnp.where(inside, share, jnp.zeros_like(share))
            nearest = jnp.clip(place, 0, max(size - 1, 0)).astype(jnp.int32)
            index = index * size + nearest
        values = jnp.take_along_axis(flat, index[..., None], axis=1, mode="clip")
        total += weight[..., None] * values.astype(dtype)
    return total.reshape(batch, where.shape[1], features).astype(x.dtype)
