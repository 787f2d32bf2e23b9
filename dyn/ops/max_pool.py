"""Max pooling, with a gradient that a CPU computes quickly."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from dyn.ops.window import Array, Padding, Window, resolve


def max_pool(
    inputs: Array, size: Sequence[int], strides: int | Sequence[int], padding: Padding
) -> Array:
    """The largest input in each window: `flax.linen.max_pool`'s numbers and gradient.

    XLA's gradient scatters, which is slow on a CPU; this one compares slices.

    Args:
        inputs: `[B, *spatial, C]`.
        size, strides, padding: along each spatial axis, as in `nn.Conv`.

    Returns:
        `[B, *out, C]`. The gradient of an output goes to the first place that has its value.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops.max_pool import max_pool
        >>> max_pool(jnp.arange(6.0).reshape(1, 6, 1), (2,), 2, 0)[0, :, 0]
        Array([1., 3., 5.], dtype=float32)
    """
    inputs, window = resolve(inputs, size, strides, padding, 1, 1, 1)
    return _max_pool(inputs, window)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(inputs: Array, window: Window) -> Array:
    return _largest(inputs, window)[0]


@_max_pool.defjvp
def _max_pool_tangent(window: Window, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y, first = _largest(*primals, window)
    terms = [
        jnp.where(first == t, tangent, jnp.zeros_like(tangent))
        for t, tangent in enumerate(window.shifts(*tangents))
    ]
    return y, sum(terms[1:], terms[0])


def _largest(inputs: Array, window: Window) -> tuple[Array, Array]:
    """The largest input of each window, and the number of the first tap that sees it."""
    y, *others = window.shifts(inputs, fill=-jnp.inf)
    first = jnp.zeros(y.shape, jnp.int32 if window.taps > 127 else jnp.int8)
    for t, x in enumerate(others, start=1):
        larger = x > y
        y, first = jnp.where(larger, x, y), jnp.where(larger, jnp.full_like(first, t), first)
    return y, first
