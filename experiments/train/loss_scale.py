"""Loss scaling: multiplies the loss, so that half precision does not round its gradients to zero.

Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev, Venkatesh, Wu: Mixed
Precision Training. ICLR 2018. Powers of two change the exponent of a float and nothing else.

Flax's `DynamicScale` counts steps otherwise and judges each microbatch alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class LossScale:
    """The loss's factor, and the number of finite steps since it last changed."""

    factor: jax.Array
    steps: jax.Array


def make_loss_scale(factor: float) -> LossScale:
    """Returns the loss scale that a run begins with."""
    return LossScale(jnp.float32(factor), jnp.int32(0))


def update_loss_scale(scale: LossScale, finite: jax.Array, grow_every: int) -> LossScale:
    """Halves the factor after a step that was not finite, doubles it after `grow_every` finite ones.

    The factor does not fall below 1. With `grow_every` 0 it is constant.
    """
    if not grow_every:
        return scale
    steps = jnp.where(finite, scale.steps + 1, 0)
    grows = steps >= grow_every
    change = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5).astype(jnp.float32)
    return LossScale(jnp.maximum(scale.factor * change, 1.0), jnp.where(grows, 0, steps))


def unscale_gradients(gradients: Any, scale: LossScale) -> Any:
    """Divides the gradients of the scaled loss by the factor."""
    return jax.tree.map(lambda leaf: leaf / scale.factor.astype(leaf.dtype), gradients)


def check_finite(
    loss: Any, gradients: Any, batch_stats: Any, scale: LossScale, grow_every: int
) -> tuple[jax.Array, jax.Array]:
    """Checks the numbers of a step: (all are finite, only the gradients overflow).

    Gradients that overflow may be finite at a smaller scale, if the scale can fall: such a step is skipped.
    """
    finite = all_finite((loss, gradients, batch_stats))
    can_fall = (scale.factor > 1) if grow_every else jnp.bool_(False)
    return finite, ~finite & all_finite((loss, batch_stats)) & can_fall


def all_finite(tree: Any) -> jax.Array:
    """Returns True if all numbers of a tree are finite."""
    # The largest is infinite or NaN where any number is; on a CPU this is the fastest test.
    largest = [
        jnp.max(jnp.abs(leaf), initial=0).astype(jnp.float32) for leaf in jax.tree.leaves(tree)
    ]
    return jnp.isfinite(jnp.stack(largest).max())


def keep_old_where(skip: jax.Array, new: Any, old: Any) -> Any:
    """Returns the new arrays, or the old ones where `skip` is true."""
    return jax.tree.map(lambda new, old: jnp.where(skip, old, new), new, old)
