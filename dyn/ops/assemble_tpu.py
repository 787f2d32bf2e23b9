"""Kernels of single samples, assembled from shared cells in one Pallas kernel for TPUs.

    W_b[t, q i, p o] = sum_j a[b, t, p, q, j] E_j        E_j `[i, o]`

The matrix unit makes one row of a kernel for all samples at once: they lie above each other. A convolution
wants the rows of one sample above each other. XLA writes all kernels and reads them again to exchange them;
here they are exchanged before they are written.

For kernels in bfloat16, products of float32 are three products of bfloat16 (those of both high parts, and of
each high part with the low part of the other) beside each other in one contraction.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dyn.ops.assemble import assemble_plainly
from dyn.ops.geometry import Array
from dyn.ops.vmem import LANES, count_vmem_bytes, find_vmem_size, round_up

ROWS = 32  # of a cell in a grid step, at most
TILE = 16  # rows of a tile of kernels in bfloat16


def assemble_kernels(mix: Array, cells: Array, dtype) -> Array:
    """Assembles a kernel per sample from cells.

    Args:
        mix: weights `[B, T, p, q, n]` of n cells in each of the p x q blocks of T taps.
        cells: `[n, i, o]`, or `[n, T, i, o]` for other cells at each tap, where p = q = 1.
        dtype: of the kernels.

    Returns:
        `[B, T, q i, p o]`.
    """
    return _assemble(mix.astype(jnp.float32), cells.astype(jnp.float32), jnp.dtype(dtype))


def why_unsupported(mix: tuple[int, ...], cells: tuple[int, ...], dtype) -> str | None:
    """Explains why `assemble_kernels` cannot make these kernels; None if it can."""
    if dtype not in (jnp.float32, jnp.bfloat16):
        return "TPUs compute in float32 and bfloat16"
    batch, *blocks, _ = mix
    number, *_, i, o = cells
    if not isinstance(batch, int) or batch % 8:
        return "samples are handled eight at a time"
    if i % TILE:
        return "rows of cells are handled sixteen at a time"
    if o % LANES and blocks[1] > 1:
        return "cells beside each other must fill the lanes"
    if (
        _count_bytes(_choose_samples(batch), math.prod(blocks), number, i, o)
        > 0.9 * find_vmem_size()
    ):
        return "a part of all cells does not fit into VMEM"
    return None


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _assemble(mix, cells, dtype) -> Array:
    batch, taps, p, q, number = mix.shape
    i, o = cells.shape[-2:]
    samples, rows, lanes = _choose_samples(batch), _choose_rows(i), _choose_lanes(o)
    depth = round_up(number, 16)
    weights = jnp.pad(_move_blocks(mix), ((0, 0), (0, 0), (0, depth - number)))
    if dtype != jnp.float32:
        high, low = _split(weights)
        weights = jnp.concatenate([high, low, high], axis=-1)
    kernels = _make_kernel_spec(mix.shape, cells.shape, samples)
    return pl.pallas_call(
        partial(_assemble_block, exact=dtype == jnp.float32),
        grid=(batch // samples, i // rows, o // lanes, taps * p * q),
        in_specs=[
            pl.BlockSpec((1, samples, weights.shape[-1]), lambda b, i, o, m: (m, b, 0)),
            _make_cell_spec(cells.shape, depth),
        ],
        out_specs=kernels,
        out_shape=jax.ShapeDtypeStruct((batch, taps, q * i, p * o), dtype),
        compiler_params=_make_parameters(),
        name="assemble_kernels",
    )(weights, _interleave(cells, depth))


def _assemble_forward(mix, cells, dtype):
    return _assemble(mix, cells, dtype), (mix, cells)


def _assemble_backward(dtype, saved, d_kernels):
    return _compute_gradients(*saved, d_kernels)


_assemble.defvjp(_assemble_forward, _assemble_backward)


@jax.custom_vjp
def _compute_gradients(mix, cells, d_kernels) -> tuple[Array, Array]:
    """Returns the gradients for the weights and the cells."""
    batch, taps, p, q, number = mix.shape
    i, o = cells.shape[-2:]
    samples, rows, lanes = _choose_samples(batch), _choose_rows(i), _choose_lanes(o)
    depth, blocks = round_up(number, 16), taps * p * q
    exact = d_kernels.dtype == jnp.float32
    weights = jnp.pad(_move_blocks(mix), ((0, 0), (0, 0), (0, depth - number)))
    weights = weights.swapaxes(1, 2)  # [M, n, B]
    if not exact:
        weights = jnp.concatenate(_split(weights), axis=1)
    height, interleaved = weights.shape[1], _interleave(cells, depth)
    d_mix, d_cells = pl.pallas_call(
        partial(_write_gradients, exact=exact, by_tap=cells.ndim == 4),
        grid=(batch // samples, i // rows, o // lanes, blocks),
        in_specs=[
            pl.BlockSpec((1, height, samples), lambda b, i, o, m: (m, 0, b)),
            _make_cell_spec(cells.shape, depth),
            _make_kernel_spec(mix.shape, cells.shape, samples),
        ],
        out_specs=[
            pl.BlockSpec((blocks, samples, height), lambda b, i, o, m: (0, b, 0)),
            _make_cell_spec(cells.shape, depth, sum_of=True),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((blocks, batch, height), jnp.float32),
            jax.ShapeDtypeStruct((batch // samples, *interleaved.shape), jnp.float32),
        ],
        compiler_params=_make_parameters(),
        name="assemble_kernels_gradients",
    )(weights, interleaved, d_kernels)
    if not exact:
        d_mix = d_mix[..., :depth] + d_mix[..., depth:]
    d_mix = jnp.moveaxis(d_mix[..., :number], 0, 1).reshape(mix.shape)
    d_cells = jnp.moveaxis(d_cells.sum(0)[:, :, :number], 2, 0)
    return d_mix, d_cells.reshape(cells.shape)


def _gradients_forward(*args):
    return _compute_gradients(*args), args


def _gradients_backward(saved, cotangents):
    """Differentiates twice through plain XLA operations: the kernel has no second derivative."""

    def gradients(mix, cells, d_kernels):
        assemble = partial(assemble_plainly, dtype=d_kernels.dtype)
        return jax.vjp(assemble, mix, cells)[1](d_kernels)

    return jax.vjp(gradients, *saved)[1](cotangents)


_compute_gradients.defvjp(_gradients_forward, _gradients_backward)


def _assemble_block(a_ref, e_ref, w_ref, *, exact: bool):
    """Assembles some rows and columns of one block of several samples' kernels.

    Args:
        a_ref: weights `[1, samples, n]`, or `[1, samples, 3 n]` in bfloat16.
        e_ref: cells `[1, rows, n, columns]`.
        w_ref: kernels `[samples, 1, rows, columns]`.
        exact: whether kernels are in float32.
    """
    rows, weights = e_ref.shape[1], a_ref[0]

    def make_row(r):
        e = e_ref[0, r]
        if not exact:
            high, low = _split(e)
            e = jnp.concatenate([high, high, low])
        return _multiply(weights, e, 1, 0)

    def make_tile(tile, _):
        made = jnp.stack([make_row(tile * TILE + r) for r in range(TILE)])
        w_ref[:, 0, pl.ds(pl.multiple_of(tile * TILE, TILE), TILE)] = made.swapaxes(0, 1).astype(
            w_ref.dtype
        )

    lax.fori_loop(0, rows // TILE, make_tile, None)


def _write_gradients(a_ref, e_ref, dw_ref, da_ref, de_ref, *, exact: bool, by_tap: bool):
    """Adds the shares of some rows and columns of a block to the gradients.

    Args:
        a_ref: weights `[1, n, samples]`, or `[1, 2 n, samples]` in bfloat16.
        e_ref: cells `[1, rows, n, columns]`.
        dw_ref: gradient of the kernels, `[samples, 1, rows, columns]`.
        da_ref: gradient of the weights of all blocks, `[M, samples, n]`, or `[M, samples, 2 n]` to be added.
        de_ref: gradient of the cells, `[1, 1, rows, n, columns]`.
        exact: whether kernels are in float32.
        by_tap: whether each block has other cells.
    """
    rows, depth = de_ref.shape[2:4]
    weights, block = a_ref[0], pl.program_id(3)

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0) & (block == 0))
    def _():
        da_ref[...] = jnp.zeros_like(da_ref)

    @pl.when(by_tap | (block == 0))
    def _():
        de_ref[...] = jnp.zeros_like(de_ref)

    def add_tile(tile, total):
        first = pl.multiple_of(tile * TILE, TILE)
        dw = dw_ref[:, 0, pl.ds(first, TILE)].astype(jnp.float32)
        for r, of_row in enumerate(dw.swapaxes(0, 1).astype(dw_ref.dtype)):
            e = e_ref[0, first + r]
            if not exact:
                e = jnp.concatenate(_split(e))
            de = _multiply(weights, of_row, 1, 0)
            de_ref[0, 0, first + r] += de if exact else de[:depth] + de[depth:]
            total += _multiply(of_row, e, 1, 1)
        return total

    start = jnp.zeros(da_ref.shape[1:], jnp.float32)
    da_ref[block] += lax.fori_loop(0, rows // TILE, add_tile, start)


def _multiply(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Contracts one axis of each of two matrices, in float32."""
    return lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _split(x: Array) -> tuple[Array, Array]:
    """Returns two arrays in bfloat16 whose sum is an array in float32, but for its last eight bits."""
    # XLA takes a conversion to bfloat16 and back for superfluous.
    bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
    high = lax.bitcast_convert_type(bits, jnp.float32)
    return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)


def _interleave(cells: Array, depth: int) -> Array:
    """Returns cells `[n, i, o]` or `[n, T, i, o]` as `[1 or T, i, depth, o]`, the missing ones zero."""
    cells = cells.reshape(len(cells), -1, *cells.shape[-2:])
    cells = jnp.pad(cells, ((0, depth - len(cells)), (0, 0), (0, 0), (0, 0)))
    return jnp.moveaxis(cells, 0, 2)


def _make_cell_spec(cells: tuple[int, ...], depth: int, sum_of: bool = False) -> pl.BlockSpec:
    """Returns the part of the interleaved cells of a step of the grid (samples, rows, columns, block).

    Args:
        cells: their shape before.
        depth: number of cells, some of them zero.
        sum_of: whether they are gradients, for each step along the samples.
    """
    rows, lanes = _choose_rows(cells[-2]), _choose_lanes(cells[-1])
    by_tap = len(cells) == 4

    def find(b, i, o, m):
        place = (m if by_tap else 0, i, 0, o)
        return (b, *place) if sum_of else place

    shape = (1, rows, depth, lanes)
    return pl.BlockSpec((1, *shape) if sum_of else shape, find)


def _move_blocks(mix: Array) -> Array:
    """Returns `[B, T, p, q, n]` as `[M, B, n]`."""
    batch, *blocks, number = mix.shape
    return jnp.moveaxis(mix.reshape(batch, math.prod(blocks), number), 1, 0)


def _make_kernel_spec(mix: tuple[int, ...], cells: tuple[int, ...], samples: int) -> pl.BlockSpec:
    """Returns the part of the kernels that a step of the grid (samples, rows, columns, block) has."""
    _, _, p, q, _ = mix
    rows, lanes = _choose_rows(cells[-2]), _choose_lanes(cells[-1])
    down, across = cells[-2] // rows, cells[-1] // lanes

    def find(b, i, o, m):
        return b, m // (p * q), m % q * down + i, m // q % p * across + o

    return pl.BlockSpec((samples, 1, rows, lanes), find)


def _make_parameters() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
        vmem_limit_bytes=int(0.95 * find_vmem_size()),
    )


def _choose_samples(batch: int) -> int:
    """Returns the samples of a grid step, as many as the matrix unit has columns if possible."""
    return max(n for n in range(8, LANES + 1, 8) if batch % n == 0)


def _choose_rows(i: int) -> int:
    return ROWS if i % ROWS == 0 else TILE


def _choose_lanes(o: int) -> int:
    return LANES if o % LANES == 0 else o


def _count_bytes(samples: int, blocks: int, number: int, i: int, o: int) -> int:
    """Counts the bytes of VMEM of the gradient, which needs the most, for kernels in float32."""
    rows, lanes, depth = _choose_rows(i), _choose_lanes(o), round_up(number, 16)
    twice = ((samples, rows, lanes), *2 * [(rows, depth, lanes)], (blocks, samples, 2 * depth))
    sizes = [2 * count_vmem_bytes(shape, 4) for shape in twice]
    return sum(sizes) + 2 * count_vmem_bytes((TILE * samples, lanes), 4)
