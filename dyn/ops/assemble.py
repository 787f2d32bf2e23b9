"""Kernels of single samples, assembled from cells that all samples share."""

import math

import jax.numpy as jnp
from jax import lax, nn

from dyn.ops.geometry import Array


def assemble_plainly(mix: Array, cells: Array, dtype, scales=None) -> Array:
    """Assembles a kernel per sample from cells in plain XLA operations; see `lowerings.assemble_kernels`."""
    if cells.ndim == 4:
        kernel = jnp.einsum(
            "btn,ntio->btio", mix[:, :, 0, 0], cells, precision=lax.Precision.HIGHEST
        )
        if scales is not None:
            logits = jnp.einsum("bin,nto->btio", *scales, precision=lax.Precision.HIGHEST)
            kernel = kernel * (2 * nn.sigmoid(logits))
        return kernel.astype(dtype)
    # `jnp.einsum` may exchange the operands; XLA then copies every kernel into another layout.
    rows = mix.reshape(math.prod(mix.shape[:-1]), mix.shape[-1])
    flat = cells.astype(mix.dtype).reshape(cells.shape[0], math.prod(cells.shape[1:]))
    kernel = jnp.matmul(rows, flat, precision=lax.Precision.HIGHEST)
    kernel = kernel.reshape(*mix.shape[:-1], *cells.shape[1:])  # [b, T, p, q, i, o]
    kernel = kernel.transpose(0, 1, 3, 4, 2, 5)
    _, taps, q, i, p, o = kernel.shape
    return kernel.reshape(-1, taps, q * i, p * o).astype(dtype)
