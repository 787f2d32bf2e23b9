"""Boxes: areas, overlaps, codes relative to anchors, clipping.

A box is `(x1, y1, x2, y2)` in pixels: its left, upper, right and lower edge. A pixel in column j covers
j to j + 1, so that x2 - x1 is a width. All functions take any leading axes.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dyn.ops.dtypes import float32_or_wider

Array = jax.Array

MAX_LOG_RATIO = math.log(1000 / 16)
"""Largest logarithm of a ratio of sides that is decoded: a box has at most 62.5 times an anchor's side."""


def box_area(boxes: Array) -> Array:
    """Returns (x2 - x1) (y2 - y1).

    Args:
        boxes: `[..., 4]`.

    Returns:
        `[...]`, in square pixels, in float32 or wider: float16 ends at 256 x 256.
    """
    boxes = boxes.astype(float32_or_wider(boxes))
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes: Array, others: Array) -> Array:
    """Returns the intersection of each box with each other box, divided by their union.

    Args:
        boxes: `[..., N, 4]`.
        others: `[..., M, 4]`.

    Returns:
        `[..., N, M]`, from 0 to 1, in float32 or wider; 0 for two boxes without area.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import box_iou
        >>> a = jnp.array([[0.0, 0.0, 10.0, 10.0]])
        >>> b = jnp.array([[0.0, 0.0, 10.0, 5.0], [5.0, 5.0, 15.0, 15.0]])
        >>> [round(float(iou), 3) for iou in box_iou(a, b)[0]]
        [0.5, 0.143]
    """
    boxes, others = _widen(boxes, others)
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    return _divide(*_intersect(a, b))


def generalized_box_iou(boxes: Array, others: Array) -> Array:
    """Returns the generalized IoU of pairs of boxes, which has a gradient where boxes do not touch.

        GIoU = IoU - (hull - union) / hull

    where the hull is the smallest box around both.

    Args:
        boxes: `[..., 4]`.
        others: `[..., 4]`, to be paired with them.

    Returns:
        `[...]`, from -1 to 1, in float32 or wider.

    Source:
        Rezatofighi et al.: Generalized Intersection over Union. CVPR 2019. https://arxiv.org/abs/1902.09630
    """
    boxes, others = _widen(boxes, others)
    intersection, union = _intersect(boxes, others)
    low = jnp.minimum(boxes[..., :2], others[..., :2])
    high = jnp.maximum(boxes[..., 2:], others[..., 2:])
    hull = jnp.prod(high - low, axis=-1)
    return _divide(intersection, union) - _divide(hull - union, hull)


def encode_boxes(boxes: Array, anchors: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Returns the codes of boxes relative to anchors, which a network learns to predict.

        t = (wx (cx - ax) / aw, wy (cy - ay) / ah, ww ln(w / aw), wh ln(h / ah))

    with centre (cx, cy), width w and height h of the box, and (ax, ay), aw and ah of its anchor.

    Args:
        boxes: `[..., 4]`; sides must be positive.
        anchors: `[..., 4]`, to be paired with them.
        weights: wx, wy, ww and wh.

    Returns:
        `[..., 4]`, in float32 or wider.

    Source:
        Girshick et al.: Rich Feature Hierarchies for Accurate Object Detection and Semantic Segmentation.
        CVPR 2014, appendix C. https://arxiv.org/abs/1311.2524
    """
    dtype = float32_or_wider(boxes, anchors)
    centre, size = _find_centre(boxes.astype(dtype))
    anchor_centre, anchor_size = _find_centre(anchors.astype(dtype))
    shift = (centre - anchor_centre) / anchor_size
    code = jnp.concatenate([shift, jnp.log(size / anchor_size)], axis=-1)
    return code * jnp.asarray(weights, dtype)


def decode_boxes(codes: Array, anchors: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Returns the boxes that have these codes: the inverse of `encode_boxes`.

    Codes of sizes are clamped at ln(1000 / 16), so that no box overflows.

    Args:
        codes: `[..., 4]`.
        anchors: `[..., 4]`, to be paired with them.
        weights: those of the codes.

    Returns:
        `[..., 4]`, in float32 or wider.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import decode_boxes, encode_boxes
        >>> anchor, box = jnp.array([0.0, 0.0, 16.0, 16.0]), jnp.array([2.0, -1.0, 12.0, 30.0])
        >>> code = encode_boxes(box, anchor)
        >>> [round(float(number), 3) for number in code]
        [-0.062, 0.406, -0.47, 0.661]
        >>> bool(jnp.allclose(decode_boxes(code, anchor), box, atol=1e-5))
        True
    """
    dtype = float32_or_wider(codes, anchors)
    codes = codes.astype(dtype) / jnp.asarray(weights, dtype)
    anchor_centre, anchor_size = _find_centre(anchors.astype(dtype))
    centre = codes[..., :2] * anchor_size + anchor_centre
    size = jnp.exp(jnp.minimum(codes[..., 2:], MAX_LOG_RATIO)) * anchor_size
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def clip_boxes(boxes: Array, sizes: Array | Sequence[int]) -> Array:
    """Returns the parts of boxes that lie in a picture.

    Args:
        boxes: `[..., N, 4]`.
        sizes: `[..., 2]`, height and width of each picture; `(H, W)` for all.

    Returns:
        `[..., N, 4]`; a box outside of the picture has no area.
    """
    sizes = jnp.asarray(sizes).astype(boxes.dtype)
    high = jnp.concatenate([sizes[..., ::-1], sizes[..., ::-1]], axis=-1)[..., None, :]
    return jnp.clip(boxes, jnp.zeros_like(high), high)


def find_mask_boxes(masks: Array) -> Array:
    """Returns the smallest box around the pixels of each mask.

    Args:
        masks: `[..., H, W]`; what is not zero belongs to the mask.

    Returns:
        `[..., 4]` in float32; zeros for a mask without pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import find_mask_boxes
        >>> mask = jnp.zeros((6, 8), bool).at[1:3, 4:7].set(True)
        >>> find_mask_boxes(mask).tolist()
        [4.0, 1.0, 7.0, 3.0]
    """
    edges = []
    for axis in (-2, -1):  # columns, then rows
        used = jnp.any(masks.astype(bool), axis=axis)
        first = jnp.argmax(used, axis=-1)
        last = used.shape[-1] - jnp.argmax(jnp.flip(used, -1), axis=-1)
        edges.append((first, jnp.where(jnp.any(used, -1), last, 0)))
    (x1, x2), (y1, y2) = edges
    return jnp.stack([x1, y1, x2, y2], axis=-1).astype(jnp.float32)


def find_covered_share(boxes: Array, mask: Array) -> Array:
    """Returns the share of each box, inside the picture, that a mask covers.

    Edges are rounded to whole pixels.

    Args:
        boxes: `[B, N, 4]`.
        mask: bool `[B, H, W]`.

    Returns:
        `[B, N]`, from 0 to 1, in float32; 0 for a box outside of the picture.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import find_covered_share
        >>> mask = jnp.zeros((1, 8, 8), bool).at[0, :, :2].set(True)
        >>> boxes = jnp.array([[[0.0, 0.0, 4.0, 4.0], [-8.0, 2.0, 2.0, 4.0], [4.0, 4.0, 8.0, 8.0]]])
        >>> find_covered_share(boxes, mask).tolist()
        [[0.5, 1.0, 0.0]]
    """
    height, width = mask.shape[-2:]
    # sums[y, x] is the number of covered pixels above and to the left of the corner (x, y).
    sums = jnp.cumsum(jnp.cumsum(mask.astype(jnp.int32), axis=-2), axis=-1)
    sums = jnp.pad(sums, [(0, 0), (1, 0), (1, 0)]).reshape(len(mask), -1)
    corners = jnp.round(clip_boxes(boxes, (height, width))).astype(jnp.int32)
    x1, y1, x2, y2 = (corners[..., n] for n in range(4))

    def read(y: Array, x: Array) -> Array:
        return jnp.take_along_axis(sums, y * (width + 1) + x, axis=1)

    covered = read(y2, x2) - read(y1, x2) - read(y2, x1) + read(y1, x1)
    return covered / jnp.maximum((x2 - x1) * (y2 - y1), 1)


def _find_centre(boxes: Array) -> tuple[Array, Array]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def _widen(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns boxes in one dtype, float32 or wider."""
    dtype = float32_or_wider(a, b)
    return a.astype(dtype), b.astype(dtype)


def _intersect(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the areas of intersection and union."""
    low = jnp.maximum(a[..., :2], b[..., :2])
    high = jnp.minimum(a[..., 2:], b[..., 2:])
    sides = jnp.maximum(high - low, 0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, box_area(a) + box_area(b) - intersection


def _divide(a: Array, b: Array) -> Array:
    """Returns a / b, and 0 where b is not positive, with gradients that are numbers."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, jnp.ones_like(b)), jnp.zeros_like(a))
