"""ROIAlign: features of a fixed size from boxes of any size, by bilinear interpolation.

Interpolation along rows and along columns are independent, so that it is a product with two matrices for
each box. A second way gathers the four neighbours of each sample. Both compute the same numbers.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops import platforms
from dyn.ops.boxes import box_area
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.sharding import automate_sharding

Array = jax.Array

METHODS = ("auto", "matmul", "gather")
# The products of a box may have this many times as many multiply-adds as its samples have neighbours before
# a gather is quicker with its gradient, which scatters. On one core of a CPU it took 42 ms and products 23 ms
# at 40 times (64 boxes, 7 x 7 bins, 64 x 64 x 64 features). Without a gradient a gather is always quicker.
GATHER_PRICE = 64
# Numbers between the two products, for one picture.
CHUNK = 2**24


def roi_align(
    features: Array,
    boxes: Array,
    size: int | Sequence[int],
    *,
    scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    method: str = "auto",
) -> Array:
    """Returns the features in each box, averaged over p x q equal bins.

        y[i, j] = mean over m x m points in bin (i, j) of the features, interpolated bilinearly

    Points are interpolated between the features around them. Up to one feature beyond the edges the
    features at the edge are repeated, and further away they are zero. This is torchvision's `roi_align`
    with its options.

    Args:
        features: `[B, h, w, C]`.
        boxes: `[B, T, 4]`, `(x1, y1, x2, y2)` in pixels of the picture.
        size: number of bins (p, q), or p for p x p.
        scale: features per pixel: 1/16 for features of stride 16.
        sampling_ratio: number m of points along each axis of a bin; 0 for as many as a bin has features,
            rounded up. It is then different for each box, and the work is that of the largest one.
        aligned: whether the value of a feature is at its centre. If not, it is at its upper left corner,
            and a box is at least one feature wide and high: Mask R-CNN as torchvision has it.
        method: 'matmul', 'gather', or 'auto', which depends on the platform and the sizes. On TPUs, whose
            gathers and scattered gradients are slow, and for a `sampling_ratio` of 0, it is 'matmul'. On a
            CPU, 'gather' is quicker if no gradient is taken.

    Returns:
        `[B, T, p, q, C]`, in the dtype of the features; computed in float32 or wider. It has no gradient
        for the boxes.

    Raises:
        ValueError: if shapes do not fit, or for an unknown method.

    Source:
        He, Gkioxari, Dollár, Girshick: Mask R-CNN. ICCV 2017, section 3. https://arxiv.org/abs/1703.06870

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import roi_align
        >>> ramp = jnp.tile(jnp.arange(8.0), (8, 1)).reshape(1, 8, 8, 1)  # the value is the column
        >>> box = jnp.array([[[2.0, 2.0, 6.0, 6.0]]])
        >>> roi_align(ramp, box, 2)[0, 0, :, :, 0].tolist()
        [[3.0, 5.0], [3.0, 5.0]]
    """
    return multilevel_roi_align(
        (features,),
        boxes,
        size,
        scales=(scale,),
        levels=jnp.zeros(boxes.shape[:-1], jnp.int32),
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        method=method,
    )


def multilevel_roi_align(
    features: Sequence[Array],
    boxes: Array,
    size: int | Sequence[int],
    *,
    scales: Sequence[float],
    levels: Array,
    sampling_ratio: int = 2,
    aligned: bool = False,
    method: str = "auto",
) -> Array:
    """Returns the features in each box, from the level of a pyramid that is chosen for it.

    Args:
        features: `[B, h, w, C]` for each level.
        boxes: `[B, T, 4]` in pixels of the picture.
        size: number of bins.
        scales: features per pixel of each level.
        levels: integers `[B, T]`, the number of each box's level, as `choose_levels` returns them.
        sampling_ratio, aligned, method: as in `roi_align`.

    Returns:
        `[B, T, p, q, C]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import choose_levels, multilevel_roi_align
        >>> pyramid = [jnp.full((1, 64 // s, 64 // s, 8), float(s)) for s in (4, 8, 16, 32)]
        >>> boxes = jnp.array([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 60.0, 60.0]]])
        >>> levels = choose_levels(boxes, 4, canonical_size=28)
        >>> y = multilevel_roi_align(pyramid, boxes, 7, scales=(1/4, 1/8, 1/16, 1/32), levels=levels)
        >>> y.shape, y[0, :, 0, 0, 0].tolist()
        ((1, 2, 7, 7, 8), [4.0, 32.0])
    """
    bins = tuple(map(int, size if isinstance(size, Iterable) else (size, size)))
    features = tuple(features)
    batch = boxes.shape[0]
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or levels.shape != boxes.shape[:2]:
        raise ValueError(
            f"boxes must be [B, T, 4] and levels [B, T]; got shapes {boxes.shape} and {levels.shape}."
        )
    fits = all(
        f.ndim == 4 and f.shape[0] == batch and f.shape[-1] == features[0].shape[-1]
        for f in features
    )
    if not fits or len(scales) != len(features):
        raise ValueError(
            "features must be [B, h, w, C] for each level, with a scale for each; got shapes "
            f"{[f.shape for f in features]} and {len(scales)} scales for boxes of shape {boxes.shape}."
        )
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: write 'auto', 'matmul' or 'gather'.")
    if method == "gather" and sampling_ratio <= 0:
        raise ValueError(
            "method='gather' needs a sampling_ratio of at least 1: write method='matmul'."
        )
    grid = Grid(bins, sampling_ratio, aligned)
    if method == "auto":
        method = choose_method([f.shape[1:3] for f in features], grid)
    # Nothing can be gathered from an empty array.
    is_empty = any(f.size == 0 for f in features)
    align = _align_by_products if method == "matmul" or is_empty else _align_by_gathers

    def compute(features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
        boxes = lax.stop_gradient(boxes).astype(float32_or_wider(boxes))
        y = align(features, boxes, levels, scales, grid)
        return y.astype(features[0].dtype)

    return automate_sharding(compute, features, boxes, levels)


def choose_levels(
    boxes: Array,
    number: int,
    *,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    lowest_level: int = 2,
) -> Array:
    """Returns the level of a feature pyramid for each box: the larger the box, the coarser.

        level = floor(canonical_level + log2(sqrt(area) / canonical_size)) - lowest_level

    clipped to 0 ... number - 1. Boxes without area get 0.

    Args:
        boxes: `[..., 4]`.
        number: number of levels.
        canonical_size: side of a square box that belongs to the canonical level, in pixels.
        canonical_level: its level; level n has a stride of 2^n.
        lowest_level: the first level.

    Returns:
        int32 `[...]`, from 0 to number - 1.

    Source:
        Lin et al.: Feature Pyramid Networks for Object Detection. CVPR 2017, equation 1.
        https://arxiv.org/abs/1612.03144

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import choose_levels
        >>> choose_levels(jnp.array([[0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 111.0, 112.0]]), 4).tolist()
        [2, 0]
    """
    side = jnp.sqrt(jnp.maximum(box_area(boxes), 1e-12))
    # A side that rounding has made a little too small belongs to the coarser level.
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)
    return (jnp.clip(level, lowest_level, lowest_level + number - 1) - lowest_level).astype(
        jnp.int32
    )


class Grid(NamedTuple):
    """The points at which a box is sampled: arguments of `roi_align`."""

    bins: tuple[int, ...]
    sampling_ratio: int
    aligned: bool


class Axis(NamedTuple):
    """The points along one axis of boxes.

    Attributes:
        points: `[..., p, m]` in features, clamped to the first and the last one.
        weights: `[..., p, m]`: 1/m, or 0 for points that are left out.
    """

    points: Array
    weights: Array


def choose_method(sizes: Sequence[Sequence[int]], grid: Grid) -> str:
    """Returns 'matmul' or 'gather' for levels of these sizes `(h, w)`, by the platform and what it costs."""
    if platforms.find_platform() == "tpu" or grid.sampling_ratio <= 0:
        return "matmul"
    p, q = grid.bins
    products = sum(p * h * w + p * q * w for h, w in sizes)
    neighbours = 4 * p * q * grid.sampling_ratio**2
    return "matmul" if products <= GATHER_PRICE * neighbours else "gather"


def place_points(
    low: Array, high: Array, scale: Any, length: Any, bins: int, grid: Grid, most: int
) -> Axis:
    """Returns the points of boxes along one axis.

    Args:
        low, high: edges of the boxes `[...]` in pixels.
        scale: features per pixel, a number or `[...]`.
        length: number of features along the axis, a number or `[...]`.
        bins: number of bins.
        grid: the arguments of `roi_align`.
        most: largest number of points of a bin that are among the features.
    """
    dtype = low.dtype
    expand = lambda a: jnp.asarray(a, dtype)[..., None, None]  # noqa: E731
    start, extent = low * scale, high * scale - low * scale
    if grid.aligned:
        start = start - 0.5
    else:
        extent = jnp.maximum(extent, 1)
    width = extent / bins
    count = jnp.full_like(width, most) if grid.sampling_ratio > 0 else jnp.ceil(width)
    count, width, length = expand(jnp.maximum(count, 0)), expand(width), expand(length)
    bin_start = expand(start) + jnp.arange(bins, dtype=dtype)[:, None] * width
    step = width / jnp.maximum(count, 1)
    number = jnp.arange(most, dtype=dtype)
    if grid.sampling_ratio <= 0:
        # Only points that are not left of the features; rounding may take one too many.
        before = jnp.ceil((-1 - bin_start) / jnp.where(step > 0, step, 1) - 0.5) - 1
        number = number + jnp.maximum(before, 0)
    points = bin_start + (number + 0.5) * step
    inside = (points >= -1) & (points <= length) & (number < count)
    weights = jnp.where(inside, 1 / jnp.maximum(count, 1), 0)
    return Axis(jnp.clip(points, 0, length - 1), weights)


def interpolate(axis: Axis, length: int) -> Array:
    """Returns the weight of each feature in each bin, `[..., p, length]`."""
    places = jnp.arange(length, dtype=axis.points.dtype)
    distance = jnp.abs(axis.points[..., None] - places)
    return jnp.sum(axis.weights[..., None] * jnp.maximum(1 - distance, 0), axis=-2)


def _count_points(length: int, grid: Grid) -> int:
    """Returns the largest number of points of a bin that are among `length` features."""
    # A bin that covers the features has a point for each of them.
    return grid.sampling_ratio if grid.sampling_ratio > 0 else length + 3


def _align_by_products(
    features: tuple[Array, ...], boxes: Array, levels: Array, scales: Sequence[float], grid: Grid
) -> Array:
    total = jnp.zeros((), boxes.dtype)
    for level, (f, scale) in enumerate(zip(features, scales, strict=True)):
        here = (levels == level).astype(boxes.dtype)
        align = partial(_align_picture, scale=scale, grid=grid)
        total += jax.vmap(align)(f.astype(float32_or_wider(f, boxes)), boxes, here)
    return total


def _align_picture(f: Array, boxes: Array, here: Array, *, scale: float, grid: Grid) -> Array:
    """Aligns the boxes `[T, 4]` of one picture, of which the weights `here` are 0 or 1.

    Boxes are taken in chunks, so that what lies between the two products stays small.
    """
    h, w, channels = f.shape
    p, q = grid.bins

    def align(boxes: Array, here: Array) -> Array:
        x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
        rows = place_points(y1, y2, scale, h, p, grid, _count_points(h, grid))
        columns = place_points(x1, x2, scale, w, q, grid, _count_points(w, grid))
        y = jnp.einsum("tph,hwc->tpwc", interpolate(rows, h) * here[:, None, None], f)
        return jnp.einsum("tqw,tpwc->tpqc", interpolate(columns, w), y)

    number = boxes.shape[0]
    chunks = max(1, -(-number * p * w * channels // CHUNK))
    if chunks == 1:
        return align(boxes, here)
    size = -(-number // chunks)
    padding = (0, chunks * size - number)
    boxes = jnp.pad(boxes, (padding, (0, 0))).reshape(chunks, size, 4)
    here = jnp.pad(here, padding).reshape(chunks, size)
    y = lax.map(lambda chunk: align(*chunk), (boxes, here))
    return y.reshape(chunks * size, p, q, channels)[:number]


def _align_by_gathers(
    features: tuple[Array, ...], boxes: Array, levels: Array, scales: Sequence[float], grid: Grid
) -> Array:
    p, q = grid.bins
    dtype = boxes.dtype
    heights, widths = ([f.shape[axis] for f in features] for axis in (1, 2))
    sizes = [h * w for h, w in zip(heights, widths, strict=True)]
    offsets = [sum(sizes[:n]) for n in range(len(sizes))]
    flat = jnp.concatenate([f.reshape(f.shape[0], -1, f.shape[-1]) for f in features], axis=1)
    height, width, offset = (jnp.asarray(a)[levels] for a in (heights, widths, offsets))
    scale = jnp.asarray(scales, dtype)[levels]
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    most = grid.sampling_ratio
    rows = place_points(y1, y2, scale, height, p, grid, most)
    columns = place_points(x1, x2, scale, width, q, grid, most)
    number = boxes.shape[1]

    def add(flat: Array, rows: Axis, columns: Axis, width: Array, offset: Array) -> Array:
        total = jnp.zeros((number, p, q, flat.shape[-1]), float32_or_wider(flat, boxes))
        # One point of each bin after the other, so that not all of them are in memory.
        for i in range(most):
            for j in range(most):
                y, row_weights = rows.points[..., i], rows.weights[..., i]
                x, column_weights = columns.points[..., j], columns.weights[..., j]
                for up in (0, 1):
                    for right in (0, 1):
                        row, row_share = _find_neighbour(y, up)
                        column, column_share = _find_neighbour(x, right)
                        row_weight = (row_weights * row_share)[:, :, None]
                        weight = row_weight * (column_weights * column_share)[:, None, :]
                        index = row[:, :, None] * width[:, None, None] + column[:, None, :]
                        # A neighbour beyond the last feature has weight 0.
                        index = jnp.where(weight > 0, index, 0) + offset[:, None, None]
                        values = jnp.take(flat, index, axis=0, mode="clip")
                        total += weight[..., None] * values.astype(total.dtype)
        return total

    return jax.vmap(add)(flat, rows, columns, width, offset)


def _find_neighbour(points: Array, upper: int) -> tuple[Array, Array]:
    """Returns the index of the lower or the upper neighbour of points, and its share of their value."""
    low = jnp.floor(points)
    share = points - low
    return (low + upper).astype(jnp.int32), share if upper else 1 - share
