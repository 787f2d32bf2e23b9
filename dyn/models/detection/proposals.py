"""Region proposals: boxes that may hold an object, from a small network that slides over a pyramid."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dyn.models.detection.matching import take
from dyn.ops.boxes import clip_boxes, decode_boxes
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.non_max_suppression import non_max_suppression
from dyn.ops.sharding import automate_sharding

Array = jax.Array


class Proposals(NamedTuple):
    """Boxes that may hold an object, the best first.

    Attributes:
        boxes: `[B, P, 4]`.
        logits: `[B, P]`.
        exists: bool `[B, P]`; the other boxes only fill the arrays.
    """

    boxes: Array
    logits: Array
    exists: Array


class RegionProposals(nn.Module):
    """A 3x3 convolution with ReLU, and 1x1 convolutions for R anchors at each position, on every level.

    Ren, He, Girshick, Sun: Faster R-CNN. NeurIPS 2015. https://arxiv.org/abs/1506.01497

    Parameters: `hidden`, `objectness` and `deltas`, each `{kernel,bias}`.
    """

    anchors: int
    dtype: Any = None

    @nn.compact
    def __call__(self, levels: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Returns logits `[B, h w R]` and codes `[B, h w R, 4]` of each level `[B, h, w, C]`."""
        fields: dict[str, Any] = {
            "dtype": self.dtype,
            "kernel_init": nn.initializers.normal(0.01),
        }
        features = levels[0].shape[-1]
        hidden = nn.Conv(features, (3, 3), padding=1, **fields, name="hidden")
        objectness = nn.Conv(self.anchors, (1, 1), **fields, name="objectness")
        deltas = nn.Conv(4 * self.anchors, (1, 1), **fields, name="deltas")
        logits, codes = [], []
        for level in levels:
            y = nn.relu(hidden(level))
            z, code = objectness(y), deltas(y)
            wide = float32_or_wider(z)
            logits.append(join_positions(z.astype(wide), 1)[..., 0])
            codes.append(join_positions(code.astype(wide), 4))
        return logits, codes


def join_positions(x: Array, features: int) -> Array:
    """Returns `[B, N, features]` of `[B, h, w, C]`, by row, column and group of features."""
    number = math.prod(x.shape[1:]) // features
    return automate_sharding(lambda x: x.reshape(x.shape[0], number, features), x)


def propose_boxes(
    logits: Sequence[Array],
    codes: Sequence[Array],
    sizes: Array,
    *,
    anchors: Sequence[Any],
    candidates: int,
    number: int,
    threshold: float,
    smallest: float,
) -> Proposals:
    """Returns the best boxes of all levels, without a gradient.

    On each level the `candidates` best anchors are decoded, clipped to the picture, and suppressed. Logits
    order the boxes: their sigmoids would be equal above about 17.

    Args:
        logits: `[B, N]` for each level.
        codes: `[B, N, 4]` for each level.
        sizes: `[B, 2]`, height and width of each picture.
        anchors: `[N, 4]` for each level.
        candidates: number of boxes of each level before suppression.
        number: number P of proposals.
        threshold: IoU of the suppression.
        smallest: smallest side of a proposal, in pixels.
    """
    found = []
    for z, code, anchor in zip(*lax.stop_gradient((logits, codes)), anchors, strict=True):
        anchor = jnp.asarray(anchor, z.dtype)
        z, index = lax.top_k(z, min(candidates, z.shape[-1]))
        boxes = clip_boxes(decode_boxes(take(code, index), anchor[index]), sizes)
        exists = is_large(boxes, smallest)
        kept, valid = non_max_suppression(
            boxes, z, threshold, min(number, z.shape[-1]), valid=exists
        )
        found.append((take(boxes, kept), take(z, kept), valid))
    boxes, z, exists = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order = jnp.where(exists, z, -jnp.inf)
    order, index = lax.top_k(order, min(number, order.shape[-1]))
    exists = take(exists, index)
    boxes = jnp.where(exists[..., None], take(boxes, index), 0)
    return Proposals(boxes, jnp.where(exists, order, 0), exists)


def is_large(boxes: Array, smallest: float) -> Array:
    """Returns whether both sides of boxes `[..., 4]` are at least this long."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return jnp.all(sides >= smallest, axis=-1)
