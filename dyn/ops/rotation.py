"""Rotation of kernels: bilinear between the grid points, exact by quarter turns."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


def rotate_kernels(kernels: Array, rotations: int) -> Array:
    """Rotates each kernel by 0, 1, ..., n - 1 times 360 / n degrees, counterclockwise as `jnp.rot90`.

    An angle is split into quarter turns, which only move numbers, and a rest below 90 degrees, by which
    the kernel is interpolated bilinearly about its centre, with zeros outside the kernel. If n is divisible
    by four, member r + n / 4 is therefore exactly `jnp.rot90` of member r.

    Args:
        kernels: `[..., k, k, I, O]`.
        rotations: n.

    Returns:
        `[n, ..., k, k, I, O]`, in float32 or wider.

    Raises:
        ValueError: if the kernels are not square, or n is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.ops.rotation import rotate_kernels
        >>> edge = jnp.array([[1.0, 1, 1], [0, 0, 0], [0, 0, 0]])[..., None, None]
        >>> rotate_kernels(edge, 4)[1, ..., 0, 0].tolist()  # the upper edge becomes the left one
        [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    if kernels.ndim < 4 or kernels.shape[-4] != kernels.shape[-3]:
        raise ValueError(
            f"kernels must be square and 2-D, [..., k, k, I, O], to be rotated; got shape {kernels.shape}."
        )
    if rotations < 1:
        raise ValueError(f"rotations={rotations} must be at least 1.")
    kernels = kernels.astype(float32_or_wider(kernels))
    rows = kernels.ndim - 4
    bank = []
    for r in range(rotations):
        quarters, rest = divmod(4 * r, rotations)
        turned = _rotate(kernels, math.tau / 4 * rest / rotations) if rest else kernels
        bank.append(jnp.rot90(turned, quarters, axes=(rows, rows + 1)))
    return jnp.stack(bank)


def _rotate(kernels: Array, angle: float) -> Array:
    """Rotates kernels `[..., k, k, I, O]` by an angle in radians, bilinearly."""
    *leading, k, _, i, o = kernels.shape
    weights = jnp.asarray(make_rotation_matrix(k, angle), kernels.dtype)
    flat = kernels.reshape(*leading, k * k, i, o)
    turned = jnp.einsum("st,...tio->...sio", weights, flat, precision=lax.Precision.HIGHEST)
    return turned.reshape(kernels.shape)


@functools.cache
def make_rotation_matrix(k: int, angle: float) -> np.ndarray:
    """Returns the matrix `[k k, k k]` that rotates a k x k kernel counterclockwise by `angle` radians.

    Row s holds the bilinear weights of the kernel's points in point s of the rotated kernel. Points
    outside the kernel are zero.
    """
    middle = (k - 1) / 2
    matrix = np.zeros((k * k, k * k))
    for s, (row, column) in enumerate(np.ndindex(k, k)):
        # Rows run downwards: y = middle - row, x = column - middle.
        y, x = middle - row, column - middle
        back_x = x * math.cos(angle) + y * math.sin(angle)
        back_y = y * math.cos(angle) - x * math.sin(angle)
        at = np.array([middle - back_y, middle + back_x])
        for t, point in enumerate(np.ndindex(k, k)):
            matrix[s, t] = np.prod(np.maximum(0.0, 1.0 - np.abs(at - point)))
    return matrix
