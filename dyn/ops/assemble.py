"""Kernels of single samples, assembled from cells that all samples share."""

import math

import jax.numpy as jnp
from jax import lax

from dyn.ops.geometry import Array


def assemble_kernels(mix: Array, cells: Array, dtype, fused: bool) -> Array:
    """Assembles a kernel per sample from cells: W_b[t, q i, p o] = sum_j mix[b, t, p, q, j] E_j.

    Args:
        mix: weights `[B, T, p, q, n]` of n cells in each of the p x q blocks of T taps.
        cells: E, `[n, i, o]`, or `[n, T, i, o]` for other cells at each tap, where p = q = 1.
        dtype: of the kernels.
        fused: whether to use a Pallas kernel for TPUs where it can do this, see `dyn.ops.assemble_tpu`.

    Returns:
        `[B, T, q i, p o]`.
    """
    if fused:
        from dyn.ops import assemble_tpu  # imports Pallas

        if assemble_tpu.why_unsupported(mix.shape, cells.shape, dtype) is None:
            return assemble_tpu.assemble_kernels(mix, cells, dtype)
    return assemble_plainly(mix, cells, dtype)


def assemble_plainly(mix: Array, cells: Array, dtype) -> Array:
    """Computes `assemble_kernels` in plain XLA operations."""
    if cells.ndim == 4:
        kernel = jnp.einsum(
            "btn,ntio->btio", mix[:, :, 0, 0], cells, precision=lax.Precision.HIGHEST
        )
        return kernel.astype(dtype)
    # `jnp.einsum` may exchange the operands; XLA then copies every kernel into another layout.
    rows = mix.reshape(math.prod(mix.shape[:-1]), mix.shape[-1])
    flat = cells.astype(mix.dtype).reshape(cells.shape[0], math.prod(cells.shape[1:]))
    kernel = jnp.matmul(rows, flat, precision=lax.Precision.HIGHEST)
    kernel = kernel.reshape(*mix.shape[:-1], *cells.shape[1:])  # [b, T, p, q, i, o]
    kernel = kernel.transpose(0, 1, 3, 4, 2, 5)
    _, taps, q, i, p, o = kernel.shape
    return kernel.reshape(-1, taps, q * i, p * o).astype(dtype)
