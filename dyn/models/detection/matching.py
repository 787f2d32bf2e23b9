"""Training samples of a detector: which anchors and proposals belong to which object, and a random choice."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops.boxes import find_covered_share
from dyn.ops.sharding import map_batch

Array = jax.Array

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class Matches(NamedTuple):
    """The object of each box.

    Attributes:
        objects: int32 `[..., N]`, the number of the object with the largest IoU.
        kinds: int32 `[..., N]`: `POSITIVE`, `NEGATIVE` (background) or `IGNORED`.
    """

    objects: Array
    kinds: Array


def match_boxes(
    iou: Array, exists: Array, positive: float, negative: float, *, restore: bool = False
) -> Matches:
    """Matches boxes with objects by their overlap.

    A box belongs to the object with the largest IoU, the first of equals. It is positive if that is at
    least `positive`, negative if it is less than `negative`, and ignored otherwise.

    Args:
        iou: `[..., G, N]` of G objects and N boxes.
        exists: bool `[..., G]`, false for objects that only fill the array.
        positive, negative: the thresholds.
        restore: whether the boxes with the largest IoU of each object are positive too, all of them if
            several are equal. Each keeps the object with its own largest IoU, which may be another.

    Source:
        torchvision's `Matcher`. Unlike there, an object that touches no box makes none positive.
    """
    iou = jnp.where(exists[..., None], iou, -1)
    best = jnp.max(iou, axis=-2)
    kinds = jnp.where(best < negative, NEGATIVE, IGNORED)
    is_positive = best >= positive
    if restore:
        largest = jnp.max(iou, axis=-1, keepdims=True)
        is_positive |= jnp.any((iou == largest) & (largest > 0), axis=-2)
    kinds = jnp.where(is_positive, POSITIVE, kinds)
    return Matches(jnp.argmax(iou, axis=-2).astype(jnp.int32), kinds.astype(jnp.int32))


def ignore_uncounted(kinds: Array, boxes: Array, targets: Mapping[str, Array]) -> Array:
    """Returns the kinds of boxes, `IGNORED` for those that have no part in the losses.

    These are all of the pictures that `counts` `[B]` of the targets leaves out, and negative ones whose part
    in the picture is `ignored` `[B, H, W]` by more than half.

    Args:
        kinds: `[B, N]` of `Matches`.
        boxes: `[B, N, 4]`.
        targets: those of the network; either may be missing.
    """
    if "ignored" in targets:
        unknown = find_covered_share(boxes, targets["ignored"]) > 0.5
        kinds = jnp.where(unknown & (kinds == NEGATIVE), IGNORED, kinds)
    if "counts" in targets:
        kinds = jnp.where(targets["counts"][:, None], kinds, IGNORED)
    return kinds


def sample_kinds(key: Array, kinds: Array, number: int, share: float) -> tuple[Array, Array]:
    """Chooses boxes at random: at most `number`, of which at most `share` are positive.

    Negative ones fill up what positive ones leave.

    Args:
        key: a random key.
        kinds: `[B, N]` of `Matches`.
        number: number of boxes.
        share: largest share of positive ones.

    Returns:
        The chosen positive boxes and the chosen negative ones, bool `[B, N]` each.
    """
    numbers = jax.random.uniform(key, kinds.shape)
    most = int(number * share)
    positive = choose_at_random(numbers, kinds == POSITIVE, most, most)
    left = number - jnp.sum(positive, axis=-1)
    return positive, choose_at_random(numbers, kinds == NEGATIVE, number, left)


def choose_at_random(numbers: Array, candidates: Array, most: int, count: Array | int) -> Array:
    """Returns the candidates with the largest random numbers.

    Args:
        numbers: `[B, N]`, at least 0.
        candidates: bool `[B, N]`.
        most: largest number of chosen ones, the size of an array.
        count: number of chosen ones, `[B]` or one for all, at most `most`.

    Returns:
        bool `[B, N]`.
    """
    most = min(most, numbers.shape[-1])

    def choose(numbers: Array, candidates: Array, count: Array) -> Array:
        values, indices = lax.top_k(jnp.where(candidates, numbers, -1), most)
        chosen = (values >= 0) & (jnp.arange(most) < count[:, None])
        empty = jnp.zeros(candidates.shape, bool)
        return jnp.put_along_axis(empty, indices, chosen, axis=-1, inplace=False)

    return map_batch(choose, numbers, candidates, jnp.broadcast_to(count, numbers.shape[:1]))


def gather_chosen(positive: Array, negative: Array, number: int) -> tuple[Array, Array]:
    """Returns the indices of chosen boxes, the positive ones first.

    Args:
        positive, negative: bool `[B, N]`.
        number: number S of indices.

    Returns:
        Indices int32 `[B, S]`, and whether there is such a box, bool `[B, S]`.
    """
    order = 2 * positive.astype(jnp.int32) + negative.astype(jnp.int32)
    number = min(number, order.shape[-1])
    values, indices = map_batch(lambda order: lax.top_k(order, number), order)
    return indices.astype(jnp.int32), values > 0


def take(array: Array, indices: Array) -> Array:
    """Returns `array[..., indices, :]` for each of the leading axes.

    Args:
        array: `[B, N, ...]`.
        indices: `[B, S]`.

    Returns:
        `[B, S, ...]`.
    """
    return jax.vmap(lambda a, i: jnp.take(a, i, axis=0, mode="clip"))(array, indices)
