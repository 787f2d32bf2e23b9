"""Loss scaling: the gradients of a larger loss, so that half precision does not round them to zero.

Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev, Venkatesh, Wu: Mixed
Precision Training. ICLR 2018. Powers of two change the exponent of a float and nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class LossScale:
    """What the loss is multiplied by, and for how many steps that has gone well."""

    factor: jax.Array
    steps: jax.Array


def start_scale(factor: float) -> LossScale:
    """The scale that a run begins with."""
    return LossScale(jnp.float32(factor), jnp.int32(0))


def next_scale(scale: LossScale, finite: jax.Array, grow_every: int) -> LossScale:
    """Half of it after gradients that are not finite, twice after `grow_every` steps of finite ones.

    It does not fall below 1. With `grow_every` 0 it stays what it is.
    """
    if not grow_every:
        return scale
    steps = jnp.where(finite, scale.steps + 1, 0)
    grows = steps >= grow_every
    change = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5).astype(jnp.float32)
    return LossScale(jnp.maximum(scale.factor * change, 1.0), jnp.where(grows, 0, steps))


def outcome(
    loss: Any, gradients: Any, statistics: Any, scale: LossScale, grow_every: int
) -> tuple[jax.Array, jax.Array]:
    """How a step went: whether its numbers are finite, and whether not, but a smaller scale may help.

    It may where gradients alone are not finite, and the scale can fall: that step is left out.
    """
    finite = all_finite((loss, gradients, statistics))
    can_fall = (scale.factor > 1) if grow_every else jnp.bool_(False)
    return finite, ~finite & all_finite((loss, statistics)) & can_fall


def unless(stays: jax.Array, new: Any, old: Any) -> Any:
    """The new arrays; the old ones where `stays`."""
    return jax.tree.map(lambda new, old: jnp.where(stays, old, new), new, old)


def unscale(gradients: Any, scale: LossScale) -> Any:
    """The gradients of the loss itself."""
    return jax.tree.map(lambda leaf: leaf / scale.factor.astype(leaf.dtype), gradients)


def all_finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite."""
    # By the largest, which is infinite or NaN where one of them is: on a CPU that is the fastest.
    largest = [
        jnp.max(jnp.abs(leaf), initial=0).astype(jnp.float32) for leaf in jax.tree.leaves(tree)
    ]
    return jnp.isfinite(jnp.stack(largest).max())
