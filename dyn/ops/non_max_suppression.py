"""Non-maximum suppression with arrays of fixed size."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops.boxes import box_iou
from dyn.ops.sharding import automate_sharding, map_batch

Array = jax.Array


def non_max_suppression(
    boxes: Array,
    scores: Array,
    threshold: float,
    size: int,
    *,
    groups: Array | None = None,
    valid: Array | None = None,
) -> tuple[Array, Array]:
    """Returns the boxes that no better box overlaps, the best first.

    Boxes are visited by descending score, and of equal scores the first comes first. A box is kept unless
    its IoU with one that has been kept, of the same group, is larger than the threshold. The result is
    exactly that of this loop, and of torchvision's `nms` on a CPU.

    It is computed for all boxes at once: with S[i, j] true if i comes before j and overlaps it,

        keep[j] <- not any_i(keep[i] and S[i, j])

    is repeated until nothing changes. After n rounds the first n boxes are right, so the end is the result
    of the loop; it usually takes a few rounds. S has N^2 entries: keep N below some thousands, for
    instance by `jax.lax.top_k` of the scores.

    Args:
        boxes: `[..., N, 4]`.
        scores: `[..., N]`.
        threshold: largest IoU of two boxes that are both kept.
        size: number K of indices to return.
        groups: `[..., N]`, such as classes: boxes of different groups do not suppress each other. None for
            one group.
        valid: `[..., N]`, false for boxes that do not exist. None if all do.

    Returns:
        indices: int32 `[..., K]`, by descending score; 0 where fewer than K boxes are kept.
        valid: bool `[..., K]`, whether there is such a box.
        They have no gradient.

    Raises:
        ValueError: if the shapes do not fit.

    Source:
        The matrix form is that of Bolya, Zhou, Xiao, Lee: YOLACT (ICCV 2019, https://arxiv.org/abs/1904.02689),
        which takes one round, an approximation.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import non_max_suppression
        >>> boxes = jnp.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], jnp.float32)
        >>> indices, valid = non_max_suppression(boxes, jnp.array([0.8, 0.9, 0.7]), 0.5, size=3)
        >>> indices.tolist(), valid.tolist()
        ([1, 2, 0], [True, True, False])
    """
    shape = scores.shape
    if boxes.shape != (*shape, 4):
        raise ValueError(
            f"boxes must be [..., N, 4] and scores [..., N]; got shapes {boxes.shape} and {shape}."
        )
    groups = jnp.zeros(shape, jnp.int32) if groups is None else groups
    valid = jnp.ones(shape, bool) if valid is None else valid.astype(bool)
    for name, array in (("groups", groups), ("valid", valid)):
        if array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape} of scores; got {array.shape}.")

    suppress = partial(_suppress, threshold=threshold, size=size)
    for _ in shape[:-1]:
        suppress = jax.vmap(suppress)
    arrays = (*lax.stop_gradient((boxes, scores)), groups, valid)
    run = map_batch if shape[:-1] else automate_sharding
    return run(suppress, *arrays)


def _suppress(
    boxes: Array, scores: Array, groups: Array, valid: Array, threshold: float, size: int
) -> tuple[Array, Array]:
    """Returns the indices and validity of the kept boxes of one picture."""
    number = scores.shape[0]
    worst = jnp.asarray(-jnp.inf, scores.dtype)
    order = jnp.argsort(-jnp.where(valid, scores, worst), stable=True)
    # A valid box may have a score of minus infinity too.
    order = order[jnp.argsort(~valid[order], stable=True)]
    boxes, groups, valid = boxes[order], groups[order], valid[order]
    rank = jnp.arange(number)
    suppresses = box_iou(boxes, boxes) > threshold
    suppresses &= (rank[:, None] < rank) & (groups[:, None] == groups)

    def repeat(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        new = valid & ~jnp.any(keep[:, None] & suppresses, axis=0)
        return new, jnp.any(new != keep)

    # From `valid` itself, so that both have the type that a `jax.shard_map` gives them.
    start = (valid, jnp.any(valid) | True)
    keep, _ = lax.while_loop(lambda state: state[1], repeat, start)
    first = jnp.argsort(~keep, stable=True)[:size]
    padding = (0, size - first.shape[0])
    indices = jnp.where(keep[first], order[first], 0).astype(jnp.int32)
    return jnp.pad(indices, padding), jnp.pad(keep[first], padding)
