"""Masks of boxes, pasted into pictures: the inverse of ROIAlign."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


def paste_masks(masks: Array, boxes: Array, size: Sequence[int], *, rounded: bool = False) -> Array:
    """Returns masks of boxes as masks of the picture, by bilinear interpolation.

    A pixel whose centre is at x has the value of the mask at

        t = (x - x1) / (x2 - x1) M - 1/2

    and a mask is zero outside of its M x M values. It needs `[..., K, H, W]` numbers; `paint_detections`
    of `dyn.models` needs one picture at a time.

    Args:
        masks: `[..., K, M, N]`, for instance probabilities.
        boxes: `[..., K, 4]`.
        size: `(H, W)` of the picture.
        rounded: whether edges are whole pixels, as torchvision pastes. Results differ by less than a pixel.

    Returns:
        `[..., K, H, W]`, in float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import paste_masks
        >>> mask, box = jnp.ones((1, 28, 28)), jnp.array([[1.0, 0.0, 3.0, 2.0]])
        >>> (paste_masks(mask, box, (3, 4)) >= 0.5)[0].astype(int).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    dtype = float32_or_wider(masks, boxes)
    masks, boxes = masks.astype(dtype), boxes.astype(dtype)
    weigh = _weigh_rounded if rounded else _weigh
    rows = weigh(boxes[..., 1], boxes[..., 3], masks.shape[-2], size[0])
    columns = weigh(boxes[..., 0], boxes[..., 2], masks.shape[-1], size[1])
    return jnp.einsum("...hm,...mn,...wn->...hw", rows, masks, columns)


def _weigh(low: Array, high: Array, values: int, length: int) -> Array:
    """Returns the weight of each value of a mask at each pixel, `[..., length, values]`."""
    pixels = jnp.arange(length, dtype=low.dtype) + 0.5
    extent = jnp.maximum(high - low, 1e-6)
    t = (pixels - low[..., None]) / extent[..., None] * values - 0.5
    weights = _share(t, jnp.arange(values, dtype=low.dtype))
    return jnp.where((high > low)[..., None, None], weights, 0)


def _weigh_rounded(low: Array, high: Array, values: int, length: int) -> Array:
    """Returns the weights as torchvision has them.

    A mask gets a border of zeros, and its box grows accordingly. The corners of the box are then rounded
    towards zero, and the mask is resized to the pixels between them, the last one included.
    """
    centre, half = (low + high) * 0.5, (high - low) * 0.5 * ((values + 2) / values)
    first, last = jnp.trunc(centre - half), jnp.trunc(centre + half)
    extent = jnp.maximum(last - first + 1, 1)[..., None]
    pixels = jnp.arange(length, dtype=low.dtype) - first[..., None]
    t = jnp.clip((pixels + 0.5) * (values + 2) / extent - 0.5, 0, values + 1)
    inside = (pixels >= 0) & (pixels < extent)
    weights = _share(t, jnp.arange(1, values + 1, dtype=low.dtype))
    return jnp.where(inside[..., None], weights, 0)


def _share(t: Array, places: Array) -> Array:
    return jnp.maximum(1 - jnp.abs(t[..., None] - places), 0)
