"""Fourier transforms as matrix products, for what has no fast ones: TPUs and ONNX files.

A transform of length n = p q is two products, with p x p and q x q matrices (Cooley and Tukey: An Algorithm
for the Machine Calculation of Complex Fourier Series. Mathematics of Computation 19, 1965). With the
frequency f = q f' + f'' and the position t = t' + p t'',

    exp(2 pi i f t / n) = exp(2 pi i f' t' / p) exp(2 pi i f'' t' / n) exp(2 pi i f'' t'' / q)

where the second factor is taken into the first product. A complex number is a pair along an axis of its own.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


def invert_by_products(
    real: Array, imaginary: Array, columns: int, dtype: jnp.dtype | None = None
) -> Array:
    """Returns `irfft2(real + 1j * imaginary, norm='ortho')` by matrix products.

    Args:
        real, imaginary: `[..., R, columns // 2 + 1]`.
        columns: C, number of columns of the result.
        dtype: bfloat16 to round the operands of all products to it; None for products as precise as the
            operands.

    Returns:
        `[..., R, C]`, in float32 for bfloat16.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops.fourier import invert_by_products
        >>> mean = jnp.zeros((6, 3)).at[0, 0].set(1.0)
        >>> x = invert_by_products(mean, jnp.zeros((6, 3)), columns=4)
        >>> x.shape, round(float(x[0, 0] * (6 * 4) ** 0.5), 5)
        ((6, 4), 1.0)
    """
    *leading, rows, half = real.shape
    # The axes are c (real and imaginary), b, and two for each transformed axis: f, g of frequencies, and
    # u, t of positions.
    x = jnp.stack([real, imaginary])
    first, second = _make_factors(rows, rows)
    g, _, f = first.shape[:3]
    x = x.reshape(2, *leading, f, g, half)
    x = _multiply("c...fgm,gcfdt->d...tgm", x, first, dtype)
    x = _multiply("d...tgm,dgeu->e...utm", x, second, dtype)
    x = x.reshape(2, *leading, rows, half)

    first, second = _make_factors(columns, half)
    g, _, f = first.shape[:3]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, f * g - half)])
    x = x.reshape(2, *leading, rows, f, g)
    x = _multiply("c...fg,gcfdt->d...tg", x, first, dtype)
    x = _multiply("d...tg,dgu->...ut", x, second[:, :, 0], dtype)
    return x.reshape(*leading, rows, columns)


def _multiply(axes: str, x: Array, waves: np.ndarray, dtype: jnp.dtype | None) -> Array:
    """Multiplies by a constant, in float32 or wider."""
    wide = x.dtype
    if dtype == jnp.bfloat16:
        x, precision = x.astype(dtype), None
    else:
        precision = lax.Precision.HIGHEST
    factor = jnp.asarray(waves, x.dtype)
    return jnp.einsum(axes, x, factor, precision=precision, preferred_element_type=wide)


def _make_factors(length: int, frequencies: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two products of the inverse transform of one axis, orthonormal.

    Args:
        length: n = p q, number of positions.
        frequencies: number of frequencies: n, or n // 2 + 1 if the others are their conjugates and only
            the real part of the result matters.

    Returns:
        `[g, c, f, d, t]` and `[d, g, e, u]`: from c to d, and from d to e, the axes of real and imaginary
        parts; f = q f' + f'' has f' along f, f'' along g, and t = t' + p t'' has t' along t, t'' along u.
    """
    p = max(d for d in range(1, math.isqrt(length) + 1) if length % d == 0)
    q = length // p
    numbers = q * np.arange(-(-frequencies // q))[:, None] + np.arange(q)  # [f, g]
    weights = (numbers < frequencies) / math.sqrt(length)
    if frequencies < length:  # all but the mean and the highest of an even number stand for two
        weights = weights * np.where(numbers * 2 % length == 0, 1, 2)
    turns = numbers[:, :, None] * np.arange(p) % length  # f t' / n, [f, g, t]
    first = _pair_up(weights[:, :, None] * np.exp(2j * np.pi / length * turns))
    turns = np.arange(q)[:, None] * np.arange(q) % q  # f'' t'' / q, [g, u]
    second = _pair_up(np.exp(2j * np.pi / q * turns))
    return first.transpose(3, 0, 2, 1, 4), second.transpose(0, 2, 1, 3)


def _pair_up(factor: np.ndarray) -> np.ndarray:
    """Returns the product with a complex factor as one of pairs: `[from, to, ...]`."""
    return np.stack([np.stack([factor.real, factor.imag]), np.stack([-factor.imag, factor.real])])
