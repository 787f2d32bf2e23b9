"""Detections and targets: arrays of fixed size, and what is done with them outside of a network."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dyn.models.detection.matching import take
from dyn.models.detection.proposals import is_large
from dyn.ops.boxes import clip_boxes, decode_boxes, find_mask_boxes
from dyn.ops.non_max_suppression import non_max_suppression
from dyn.ops.paste_masks import paste_masks
from dyn.ops.sharding import automate_sharding

Array = jax.Array

IGNORED_ID = 255


class Detections(NamedTuple):
    """The objects that a network finds, the best first.

    Attributes:
        boxes: `[B, K, 4]` in pixels of the input.
        scores: `[B, K]`, from 0 to 1; 0 where fewer than K objects are found.
        labels: int32 `[B, K]`; 0 where fewer than K objects are found.
        masks: `[B, K, M, M]`, the probability that a point of the box belongs to the object; None for a
            network without masks.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array | None = None


def make_targets(ids: Array, classes: Array, sizes: Array | None = None) -> dict[str, Array]:
    """Returns the targets of a detector from maps of objects.

    Make them after a picture has been flipped, turned and cropped: boxes follow from the pixels that are
    left, and an object without pixels is no target.

    Args:
        ids: integers `[B, H, W]`: 1 to G, at most 254, for the pixels of each object, 0 for the background,
            and 255 for what is neither to be found nor background, such as borders and crowds.
        classes: int `[B, G]`, the class of each object from 1; 0 for a row without an object.
        sizes: int `[B, 2]`, height and width of each picture without its filling, which is background
            whatever its number; None for H and W.

    Returns:
        `boxes` float32 `[B, G, 4]`, `labels` int32 `[B, G]`, `masks` bool `[B, G, H, W]`, and `ignored` bool
        `[B, H, W]`, the pixels of 255.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.models import make_targets
        >>> ids = jnp.zeros((1, 8, 8), jnp.uint8).at[0, 2:5, 1:4].set(1)
        >>> targets = make_targets(ids, jnp.array([[7, 0]]))
        >>> targets["boxes"].tolist(), targets["labels"].tolist()
        ([[[1.0, 2.0, 4.0, 5.0], [0.0, 0.0, 0.0, 0.0]]], [[7, 0]])
    """
    numbers = jnp.arange(1, classes.shape[-1] + 1)
    masks = ids[:, None].astype(jnp.int32) == numbers[:, None, None]
    masks &= (classes > 0)[..., None, None]
    labels = jnp.where(jnp.any(masks, axis=(-2, -1)), classes, 0).astype(jnp.int32)
    ignored = ids == IGNORED_ID
    if sizes is not None:
        rows, columns = (jnp.arange(n) for n in ids.shape[1:])
        ignored &= (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
    boxes = find_mask_boxes(masks)
    return {"boxes": boxes, "labels": labels, "masks": masks, "ignored": ignored}


def select_detections(
    scores: Array,
    codes: Array,
    proposals: Array,
    sizes: Array,
    *,
    code_weights: Sequence[float],
    smallest: float,
    threshold: float,
    candidates: int,
    iou: float,
    number: int,
) -> Detections:
    """Returns the best boxes of all classes.

    Args:
        scores: `[B, P, classes]`, that of the background first; 0 for proposals that do not exist.
        codes: `[B, P, classes, 4]`.
        proposals: `[B, P, 4]`.
        sizes: `[B, 2]`, height and width of each picture.
        code_weights: weights of the codes.
        smallest: smallest side of a detection, in pixels.
        threshold: score that a detection must exceed.
        candidates: number of boxes before suppression.
        iou: threshold of the suppression among boxes of a class.
        number: number K of detections.
    """
    batch, _, classes = scores.shape
    flat = scores[..., 1:].reshape(batch, -1)
    score, index = lax.top_k(flat, min(candidates, flat.shape[-1]))
    proposal, label = index // (classes - 1), index % (classes - 1) + 1
    code = take(codes.reshape(batch, -1, 4), proposal * classes + label)
    boxes = decode_boxes(code, take(proposals, proposal), code_weights)
    boxes = clip_boxes(boxes, sizes)
    exists = (score > threshold) & is_large(boxes, smallest)
    return suppress_detections(boxes, score, label, exists, iou, number)


def suppress_detections(
    boxes: Array, scores: Array, labels: Array, exists: Array, iou: float, number: int
) -> Detections:
    """Returns the `number` best boxes that are left after suppression within each class.

    Args:
        boxes: `[B, N, 4]`.
        scores: `[B, N]`.
        labels: int `[B, N]`.
        exists: bool `[B, N]`.
        iou: threshold of the suppression.
        number: K.
    """
    kept, valid = non_max_suppression(boxes, scores, iou, number, groups=labels, valid=exists)
    boxes = jnp.where(valid[..., None], take(boxes, kept), 0)
    scores = jnp.where(valid, take(scores, kept), 0)
    return Detections(boxes, scores, jnp.where(valid, take(labels, kept), 0).astype(jnp.int32))


def scale_detections(detections: Detections, factors: Array) -> Detections:
    """Returns detections in the pixels of other pictures.

    Args:
        detections: detections of `[B, ...]`.
        factors: `[B, 2]`, height and width of the other picture divided by those of the network's.
    """
    factors = jnp.asarray(factors, detections.boxes.dtype)[..., ::-1]
    boxes = detections.boxes * jnp.concatenate([factors, factors], axis=-1)[:, None]
    return detections._replace(boxes=boxes)


def paint_detections(
    detections: Detections,
    size: Sequence[int],
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
) -> Array:
    """Returns a map of classes: each detection fills what a better one has not.

    Detections without masks fill their boxes. One mask of a picture is in memory at a time.

    Args:
        detections: detections of `[B, ...]`.
        size: `(H, W)`.
        threshold: score that a detection must exceed to be painted.
        mask_threshold: probability from which a pixel belongs to a mask.

    Returns:
        int32 `[B, H, W]`, 0 for the background.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.models import Detections, paint_detections
        >>> boxes = jnp.array([[[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 4.0, 2.0]]])
        >>> found = Detections(boxes, jnp.array([[0.9, 0.8]]), jnp.array([[3, 5]]), jnp.ones((1, 2, 28, 28)))
        >>> paint_detections(found, (2, 5)).tolist()
        [[[3, 3, 5, 5, 0], [0, 5, 5, 5, 0]]]
    """
    size = tuple(size)

    def paint(boxes: Array, scores: Array, labels: Array, masks: Array | None) -> Array:
        def fill(painted: Array, one: tuple[Any, ...]) -> tuple[Array, None]:
            box, score, label, mask = one
            if mask is None:
                here = fill_box(box, size)
            else:
                here = paste_masks(mask, box, size) >= mask_threshold
            here &= (score > threshold) & (painted == 0)
            return jnp.where(here, label, painted), None

        empty = jnp.zeros(size, jnp.int32)
        return lax.scan(fill, empty, (boxes, scores, labels, masks))[0]

    return automate_sharding(jax.vmap(paint), *detections[:3], detections.masks)


def fill_box(box: Array, size: Sequence[int]) -> Array:
    """Returns the pixels, bool `[H, W]`, whose centres lie in a box `[4]`."""
    y, x = (jnp.arange(n, dtype=box.dtype) + 0.5 for n in size)
    rows, columns = (y >= box[1]) & (y < box[3]), (x >= box[0]) & (x < box[2])
    return rows[:, None] & columns
