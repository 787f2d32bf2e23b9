"""Max unpooling: puts pooled values back where they came from."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dyn.ops.dtypes import float32_or_wider
from dyn.ops.geometry import Array
from dyn.ops.sharding import automate_sharding, mesh_axes

DUPLICATES = ("mean", "set")


def max_unpool(
    values: Array, places: Array, shape: Sequence[int], duplicates: str = "mean"
) -> Array:
    """Puts each value at its place in an array of zeros: the inverse of `max_pool_with_argmax`.

        y[b, q, c] = mean of values[b, p, c] over all p with places[b, p, c] = q, or 0 if there is no such p

    Overlapping windows often agree on their largest input: with 4x4 windows at stride 2 on random numbers
    about half of the places occur more than once, and most of the output stays zero. Windows of 2x2 at
    stride 2 have no duplicates, and pooling the unpooled values returns the positive ones.

    Args:
        values: `[B, *out, C]`.
        places: integers `[B, *out, C]`, 0 to `prod(shape) - 1`, as `max_pool_with_argmax` returns them.
        shape: the spatial shape of the result, as it was before pooling.
        duplicates: how to combine several values for one place: 'mean' takes their mean; 'set' keeps one
            of them, the last on a CPU (as in torch) and any one on accelerators.

    Returns:
        `[B, *shape, C]`, of the dtype of the values.

    Raises:
        ValueError: if the shapes of values and places differ, or for an unknown `duplicates`.

    Source:
        Zeiler, Fergus: Visualizing and Understanding Convolutional Networks. ECCV 2014, section 2.1
        (unpooling by switches). https://arxiv.org/abs/1311.2901

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import max_pool_with_argmax, max_unpool
        >>> x = jnp.array([1.0, 7.0, 5.0, 2.0]).reshape(1, 4, 1)
        >>> max_unpool(*max_pool_with_argmax(x, (2,), 2, 0), shape=(4,)).ravel()
        Array([0., 7., 5., 0.], dtype=float32)
    """
    shape = tuple(shape)
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates={duplicates!r} is unknown: write 'mean' or 'set'.")
    if values.shape != places.shape or values.ndim != len(shape) + 2:
        raise ValueError(
            f"values {values.shape} and places {places.shape} cannot be unpooled to {shape}: both must be "
            f"[B, *out, C] with {len(shape)} spatial axes."
        )
    if not jnp.issubdtype(places.dtype, jnp.integer):
        raise ValueError(f"places must be integers; got {places.dtype}.")

    def unpool(values: Array, places: Array) -> Array:
        empty = jnp.zeros(math.prod(shape), values.dtype)
        if duplicates == "set":
            return empty.at[places].set(values)
        counts = empty.at[places].add(jnp.ones_like(values))
        return empty.at[places].add(values) / jnp.maximum(counts, jnp.ones_like(counts))

    # By vmap, so that a sharded batch stays on its devices.
    by_sample = jax.vmap(jax.vmap(unpool, in_axes=-1, out_axes=-1))

    def unpool_batch(values: Array, places: Array) -> Array:
        flat = (values.shape[0], math.prod(values.shape[1:-1]), values.shape[-1])
        wide = values.reshape(flat).astype(float32_or_wider(values))
        y = by_sample(wide, places.reshape(flat))
        return y.reshape(values.shape[0], *shape, values.shape[-1]).astype(values.dtype)

    return automate_sharding(unpool_batch, values, places, axes=mesh_axes(values))
