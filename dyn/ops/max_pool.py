"""Max pooling, with a gradient that a CPU computes quickly, and where the largest inputs were."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

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


def max_pool_with_argmax(
    inputs: Array, size: Sequence[int], strides: int | Sequence[int], padding: Padding
) -> tuple[Array, Array]:
    """The largest input in each window, and its place: what `max_unpool` puts it back by.

        y[b, p, c] = x[b, i[b, p, c], c],    i[b, p, c] = the first argmax of x[b, :, c] in window p

    Args:
        inputs: `[B, *spatial, C]`.
        size, strides, padding: along each spatial axis, as in `nn.Conv`; 'CIRCULAR' and 'REFLECT' are
            not possible, and less padding than a window is wide.

    Returns:
        values: `[B, *out, C]`, those of `max_pool`; their gradient is that of the gather above.
        places: int32 `[B, *out, C]`, from 0 to `prod(spatial) - 1`: flat indices into the spatial axes of
            the inputs as they are without padding, the last axis fastest, each channel by itself. Of equal
            inputs the first counts, as in torch.

    Raises:
        ValueError: for a padding in which a window would see no input, or inputs from elsewhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops import max_pool_with_argmax
        >>> x = jnp.array([1.0, 7.0, 5.0, 5.0]).reshape(1, 4, 1)
        >>> values, places = max_pool_with_argmax(x, (2,), 2, 0)
        >>> values.ravel(), places.ravel()
        (Array([7., 5.], dtype=float32), Array([1, 2], dtype=int32))
    """
    if isinstance(padding, str) and padding.upper() in ("CIRCULAR", "REFLECT"):
        raise ValueError(
            f"padding={padding!r} shows windows the same input at two places: write 'SAME', 'VALID', or "
            "numbers."
        )
    inputs, window = resolve(inputs, size, strides, padding, 1, 1, 1)
    if any(max(pair) >= k for pair, k in zip(window.padding, window.size, strict=True)):
        raise ValueError(
            f"padding={padding!r} with windows of {window.size}: a window would see no input at all. "
            "Pad less than a window is wide."
        )
    _, first = _largest(lax.stop_gradient(inputs), window)
    return _max_pool(inputs, window), _places(first.astype(jnp.int32), inputs.shape[1:-1], window)


def _places(first: Array, spatial: Sequence[int], window: Window) -> Array:
    """Flat indices into `spatial` of the taps whose numbers are `first`, `[B, *out, C]`."""
    flat, below = jnp.zeros_like(first), window.taps
    for axis, (n, k) in enumerate(zip(spatial, window.size, strict=True)):
        below //= k
        tap = first // below % k
        start = lax.broadcasted_iota(jnp.int32, first.shape, axis + 1) * window.strides[axis]
        # Of nothing but -inf the first tap is taken, which may lie in the padding.
        place = jnp.maximum(start + tap - window.padding[axis][0], 0)
        flat = flat * n + place
    return flat


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
