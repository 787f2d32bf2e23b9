"""Max pooling, with a gradient that is quick on each platform, and with the positions of the maxima."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops import platforms
from dyn.ops.geometry import Array, Geometry, Padding, resolve_geometry
from dyn.ops.sharding import automate_sharding, mesh_axes


def max_pool(
    inputs: Array, size: Sequence[int], strides: int | Sequence[int], padding: Padding
) -> Array:
    """Returns the largest input in each window: the numbers and gradient of `flax.linen.max_pool`.

    XLA's gradient scatters, which is slow on a CPU: there and on a GPU this one compares slices, which
    overlooks a NaN that is not the first input of its window.

    Args:
        inputs: `[B, *spatial, C]`.
        size, strides, padding: along each spatial axis, as in `nn.Conv`.

    Returns:
        `[B, *out, C]`. The gradient of an output goes to the first input that has its value.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops.max_pool import max_pool
        >>> max_pool(jnp.arange(6.0).reshape(1, 6, 1), (2,), 2, 0)[0, :, 0]
        Array([1., 3., 5.], dtype=float32)
    """
    geometry = resolve_geometry(inputs.shape[1:-1], size, strides, padding)

    pool_padded = _scatter_max_pool if platforms.find_platform() == "tpu" else _max_pool

    def pool(inputs: Array) -> Array:
        return pool_padded(geometry.pad_edges(inputs), geometry)

    return automate_sharding(pool, inputs, axes=mesh_axes(inputs))


def max_pool_with_argmax(
    inputs: Array, size: Sequence[int], strides: int | Sequence[int], padding: Padding
) -> tuple[Array, Array]:
    """Returns the largest input in each window and its position, for `max_unpool`.

        y[b, p, c] = x[b, i[b, p, c], c],    i[b, p, c] = the first argmax of x[b, :, c] in window p

    Args:
        inputs: `[B, *spatial, C]`.
        size, strides, padding: along each spatial axis, as in `nn.Conv`, except 'CIRCULAR' and 'REFLECT'.
            The padding must be smaller than the window.

    Returns:
        values: `[B, *out, C]`, those of `max_pool`; their gradient is that of the gather above.
        places: int32 `[B, *out, C]`, from 0 to `prod(spatial) - 1`: flat indices into the spatial axes of
            the unpadded inputs, the last axis fastest, for each channel. Of equal inputs the first counts,
            as in torch.

    Raises:
        ValueError: for a padding that leaves a window without inputs, or repeats inputs.

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
            f"padding={padding!r} repeats inputs, which then have two places: write 'SAME', 'VALID', or "
            "numbers."
        )
    geometry = resolve_geometry(inputs.shape[1:-1], size, strides, padding)
    if any(max(pair) >= k for pair, k in zip(geometry.padding, geometry.size, strict=True)):
        raise ValueError(
            f"padding={padding!r} leaves windows of size {geometry.size} without inputs: pad less than the "
            "window size."
        )

    def pool(inputs: Array) -> tuple[Array, Array]:
        _, first = _find_maxima(lax.stop_gradient(inputs), geometry)
        return _max_pool(inputs, geometry), _find_places(first.astype(jnp.int32), geometry)

    return automate_sharding(pool, inputs, axes=mesh_axes(inputs))


def _find_places(first: Array, geometry: Geometry) -> Array:
    """Turns tap numbers `first`, `[B, *out, C]`, into flat indices into the spatial axes of the input."""
    flat, below = jnp.zeros_like(first), geometry.taps
    for axis, (n, k) in enumerate(zip(geometry.spatial, geometry.size, strict=True)):
        below //= k
        tap = first // below % k
        start = lax.broadcasted_iota(jnp.int32, first.shape, axis + 1) * geometry.strides[axis]
        # If all inputs are -inf, the first tap is taken, which may lie in the padding.
        place = jnp.maximum(start + tap - geometry.padding[axis][0], 0)
        flat = flat * n + place
    return flat


def _scatter_max_pool(inputs: Array, geometry: Geometry) -> Array:
    """Computes `_max_pool` by XLA's operation for windows, whose gradient scatters."""
    window, strides = (1, *geometry.size, 1), (1, *geometry.strides, 1)
    padding = ((0, 0), *geometry.padding, (0, 0))
    return lax.reduce_window(inputs, -jnp.inf, lax.max, window, strides, padding)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(inputs: Array, geometry: Geometry) -> Array:
    return _find_maxima(inputs, geometry)[0]


@_max_pool.defjvp
def _max_pool_tangent(
    geometry: Geometry, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    y, first = _find_maxima(*primals, geometry)
    terms = [
        jnp.where(first == t, tangent, jnp.zeros_like(tangent))
        for t, tangent in enumerate(geometry.shift_inputs(*tangents))
    ]
    return y, sum(terms[1:], terms[0])


def _find_maxima(inputs: Array, geometry: Geometry) -> tuple[Array, Array]:
    """Returns the largest input of each window, and the number of the first tap that has it."""
    y, *others = geometry.shift_inputs(inputs, fill=-jnp.inf)
    first = jnp.zeros(y.shape, jnp.int32 if geometry.taps > 127 else jnp.int8)
    for t, x in enumerate(others, start=1):
        larger = x > y
        y, first = jnp.where(larger, x, y), jnp.where(larger, jnp.full_like(first, t), first)
    return y, first
