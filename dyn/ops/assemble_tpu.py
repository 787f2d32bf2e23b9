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
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from dyn.ops.assemble import assemble_plainly
from dyn.ops.geometry import Array
from dyn.ops.vmem import (
    LANES,
    count_vmem_bytes,
    fill_axis,
    find_vmem_size,
    make_parameters,
    round_up,
)

Scales = tuple[Array, Array]

ROWS = 32  # of a cell in a grid step, at most
TILE = 16  # rows of a tile of kernels in bfloat16


def assemble_kernels(mix: Array, cells: Array, dtype, scales: Scales | None = None) -> Array:
    """Assembles a kernel per sample from cells.

    Args:
        mix: weights `[B, T, p, q, n]` of n cells in each of the p x q blocks of T taps.
        cells: `[n, i, o]`, or `[n, T, i, o]` for other cells at each tap, where p = q = 1.
        dtype: of the kernels.
        scales: `(u [B, i, N], v [N, T, o])` for the weight 2 sigmoid(sum_n u[b, i, n] v[n, t, o]) of every
            number of a kernel, where p = q = 1; None for no weights.

    Returns:
        `[B, T, q i, p o]`.
    """
    arrays = jax.tree.map(lambda array: array.astype(jnp.float32), (mix, cells, scales))
    return _assemble(*arrays, jnp.dtype(dtype))


def why_unsupported(
    mix: tuple[int, ...], cells: tuple[int, ...], dtype, terms: int = 0
) -> str | None:
    """Explains why `assemble_kernels` cannot make these kernels; None if it can.

    Args:
        mix, cells: shapes of the arrays.
        dtype: of the kernels.
        terms: N, the terms of their scales; 0 without.
    """
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
        _count_bytes(_choose_samples(batch), math.prod(blocks), number, i, o, terms)
        > 0.9 * find_vmem_size()
    ):
        return "a part of all cells does not fit into VMEM"
    return None


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _assemble(mix, cells, scales: Scales | None, dtype) -> Array:
    batch, taps, p, q, number = mix.shape
    i, o = cells.shape[-2:]
    exact, depth = dtype == jnp.float32, round_up(number, 16)
    samples, rows, lanes = _choose_samples(batch), _choose_rows(i, scales), _choose_lanes(o)
    weights = _join(fill_axis(_move_blocks(mix), 2, TILE), 2, "left", exact)
    arrays = [weights, _interleave(cells, depth)]
    specs = [
        pl.BlockSpec((1, samples, weights.shape[-1]), lambda b, i, o, m: (m, b, 0)),
        _make_cell_spec(cells.shape, depth, rows),
    ]
    if scales is not None:
        arrays += _arrange_scales(scales, exact)
        specs += _make_scale_specs(arrays[-2:], rows, samples, lanes)
    return pl.pallas_call(
        partial(_assemble_block, exact=exact),
        grid=(batch // samples, i // rows, o // lanes, taps * p * q),
        in_specs=specs,
        out_specs=_make_kernel_spec(mix.shape, cells.shape, rows, samples),
        out_shape=jax.ShapeDtypeStruct((batch, taps, q * i, p * o), dtype),
        compiler_params=make_parameters("parallel", "arbitrary", "arbitrary", "arbitrary"),
        name="assemble_kernels",
    )(*arrays)


def _assemble_forward(mix, cells, scales, dtype):
    return _assemble(mix, cells, scales, dtype), (mix, cells, scales)


def _assemble_backward(dtype, saved, d_kernels):
    return _compute_gradients(*saved, d_kernels)


_assemble.defvjp(_assemble_forward, _assemble_backward)


@jax.custom_vjp
def _compute_gradients(mix, cells, scales: Scales | None, d_kernels):
    """Returns the gradients for the weights, the cells and the scales."""
    batch, taps, p, q, number = mix.shape
    i, o = cells.shape[-2:]
    exact, depth, blocks = d_kernels.dtype == jnp.float32, round_up(number, 16), taps * p * q
    samples, rows, lanes = _choose_samples(batch), _choose_rows(i, scales), _choose_lanes(o)
    moved = fill_axis(_move_blocks(mix), 2, TILE)
    weights = moved.swapaxes(1, 2)  # [M, n, B]
    if not exact:
        weights = jnp.concatenate(_split(weights), axis=1)
    height, interleaved = weights.shape[1], _interleave(cells, depth)
    arrays = [weights, interleaved, d_kernels]
    specs = [
        pl.BlockSpec((1, height, samples), lambda b, i, o, m: (m, 0, b)),
        _make_cell_spec(cells.shape, depth, rows),
        _make_kernel_spec(mix.shape, cells.shape, rows, samples),
    ]
    out_specs = [
        pl.BlockSpec((blocks, samples, height), lambda b, i, o, m: (0, b, 0)),
        _make_cell_spec(cells.shape, depth, rows, sum_of=True),
    ]
    shapes = [(blocks, batch, height), (batch // samples, *interleaved.shape)]
    if scales is not None:
        left, (u, v) = _join(moved, 2, "left", exact), _arrange_scales(scales, exact)
        arrays += [left, u, v]
        specs += [
            pl.BlockSpec((1, samples, left.shape[-1]), lambda b, i, o, m: (m, b, 0)),
            *_make_scale_specs([u, v], rows, samples, lanes),
        ]
        out_specs += [
            pl.BlockSpec((rows, samples, u.shape[-1]), lambda b, i, o, m: (i, b, 0)),
            pl.BlockSpec((1, *v.shape), lambda b, i, o, m: (b, 0, 0, 0)),
        ]
        shapes += [u.shape, (batch // samples, *v.shape)]
    d_mix, d_cells, *d_scales = pl.pallas_call(
        partial(_write_gradients, exact=exact, by_tap=cells.ndim == 4),
        grid=(batch // samples, i // rows, o // lanes, blocks),
        in_specs=specs,
        out_specs=out_specs,
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        compiler_params=make_parameters("parallel", "arbitrary", "arbitrary", "arbitrary"),
        name="assemble_kernels_gradients",
    )(*arrays)
    if not exact:
        d_mix = d_mix[..., :depth] + d_mix[..., depth:]
    d_mix = jnp.moveaxis(d_mix[..., :number], 0, 1).reshape(mix.shape)
    d_cells = jnp.moveaxis(d_cells.sum(0)[:, :, :number], 2, 0).reshape(cells.shape)
    if scales is None:
        return d_mix, d_cells, None
    du, dv, terms = d_scales[0], d_scales[1].sum(0), scales[0].shape[-1]
    if not exact:
        # u has its high, low and high part, v its high, high and low part.
        third = round_up(terms, 16)
        du = du[..., :third] + du[..., 2 * third :]
        dv = dv[:, :third] + dv[:, third : 2 * third]
    du, dv = du[..., :terms].swapaxes(0, 1), dv[:, :terms].swapaxes(0, 1)
    return d_mix, d_cells, (du, dv)


def _gradients_forward(*args):
    return _compute_gradients(*args), args


def _gradients_backward(saved, cotangents):
    """Differentiates twice through plain XLA operations: the kernel has no second derivative."""

    def gradients(mix, cells, scales, d_kernels):
        assemble = partial(assemble_plainly, dtype=d_kernels.dtype)
        return jax.vjp(lambda *arrays: assemble(*arrays[:2], scales=arrays[2]), mix, cells, scales)[
            1
        ](d_kernels)

    return jax.vjp(gradients, *saved)[1](cotangents)


_compute_gradients.defvjp(_gradients_forward, _gradients_backward)


def _assemble_block(a_ref, e_ref, *refs, exact: bool):
    """Assembles some rows and columns of one block of several samples' kernels.

    Args:
        a_ref: weights `[1, samples, n]`, or `[1, samples, 3 n]` in bfloat16.
        e_ref: cells `[1, rows, n, columns]`.
        refs: with scales u `[rows, samples, N]` and v `[1, N, columns]`, or 3 N in bfloat16; and the kernels,
            `[samples, 1, rows, columns]`.
        exact: whether kernels are in float32.
    """
    *scales, w_ref = refs
    rows, weights = e_ref.shape[1], a_ref[0]

    def make_row(r):
        w = _multiply(weights, _join(e_ref[0, r], 0, "right", exact), 1, 0)
        if scales:
            u_ref, v_ref = scales
            w = w * (2 * jax.nn.sigmoid(_multiply(u_ref[r], v_ref[0], 1, 0)))
        return w

    def make_tile(tile, _):
        made = jnp.stack([make_row(tile * TILE + r) for r in range(TILE)]).swapaxes(0, 1)
        w_ref[:, 0, pl.ds(pl.multiple_of(tile * TILE, TILE), TILE)] = made.astype(w_ref.dtype)

    lax.fori_loop(0, rows // TILE, make_tile, None)


def _write_gradients(a_ref, e_ref, dw_ref, *refs, exact: bool, by_tap: bool):
    """Adds the shares of some rows and columns of a block to the gradients.

    Args:
        a_ref: weights `[1, n, samples]`, or `[1, 2 n, samples]` in bfloat16.
        e_ref: cells `[1, rows, n, columns]`.
        dw_ref: gradient of the kernels, `[samples, 1, rows, columns]`.
        refs: with scales the weights, u and v as in `_assemble_block`; the gradients of the weights of all
            blocks, `[M, samples, n]`, or `[M, samples, 2 n]` to be added, and of the cells,
            `[1, 1, rows, n, columns]`; with scales those of u, and of all of v, `[1, T, N, O]`.
        exact: whether kernels are in float32.
        by_tap: whether each block has other cells.
    """
    scales, (da_ref, de_ref, *d_scales) = (refs[:3], refs[3:]) if len(refs) > 2 else ((), refs)
    rows, depth, lanes = de_ref.shape[2:]
    weights, block, dtype = a_ref[0], pl.program_id(3), dw_ref.dtype
    first_columns = (pl.program_id(2) == 0) & (block == 0)
    first_step = (pl.program_id(1) == 0) & first_columns

    def clear(ref):
        ref[...] = jnp.zeros_like(ref)

    pl.when(first_step)(lambda: clear(da_ref))
    pl.when(by_tap | (block == 0))(lambda: clear(de_ref))
    if d_scales:
        pl.when(first_columns)(lambda: clear(d_scales[0]))
        pl.when(first_step)(lambda: clear(d_scales[1]))

    def differentiate_scales(r, dw):
        """Adds to the gradients of the scales of a row, and returns that of the numbers they scale."""
        left_ref, u_ref, v_ref = scales
        du_ref, dv_ref = d_scales
        w = _multiply(left_ref[0], _join(e_ref[0, r], 0, "right", exact), 1, 0)
        u, v = u_ref[r], v_ref[0]
        gate = jax.nn.sigmoid(_multiply(u, v, 1, 0))
        unscaled = dw * (2 * gate)
        d_logits = (unscaled * w * (1 - gate)).astype(dtype)
        du_ref[r] += _multiply(d_logits, v, 1, 1)
        # Lanes can only be cut at whole tiles.
        first = pl.multiple_of(pl.program_id(2) * lanes, lanes)
        columns = pl.ds(first, lanes) if lanes < dv_ref.shape[-1] else slice(None)
        dv_ref[0, block, :, columns] += _multiply(u, d_logits, 0, 0)
        return unscaled

    def add_tile(tile, total):
        first = pl.multiple_of(tile * TILE, TILE)
        dw = dw_ref[:, 0, pl.ds(first, TILE)].astype(jnp.float32).swapaxes(0, 1)
        for r in range(TILE):
            of_row = differentiate_scales(first + r, dw[r]) if scales else dw[r]
            of_row, e = of_row.astype(dtype), e_ref[0, first + r]
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


def _join(x: Array, axis: int, side: str, exact: bool) -> Array:
    """Returns the parts of the left or right factor of a product of float32, side by side along an axis."""
    if exact:
        return x
    high, low = _split(x)
    return jnp.concatenate([high, low, high] if side == "left" else [high, high, low], axis=axis)


def _arrange_scales(scales: Scales, exact: bool) -> list[Array]:
    """Returns u as `[i, B, N]` and v as `[T, N, o]`, or three times N in bfloat16."""
    u, v = (array.swapaxes(0, 1) for array in scales)
    return [
        _join(fill_axis(u, 2, TILE), 2, "left", exact),
        _join(fill_axis(v, 1, TILE), 1, "right", exact),
    ]


def _make_scale_specs(scales, rows: int, samples: int, lanes: int) -> list[pl.BlockSpec]:
    """Returns the parts of u and v of a step of the grid (samples, rows, columns, block)."""
    u, v = scales
    return [
        pl.BlockSpec((rows, samples, u.shape[-1]), lambda b, i, o, m: (i, b, 0)),
        pl.BlockSpec((1, v.shape[1], lanes), lambda b, i, o, m: (m, 0, o)),
    ]


def _interleave(cells: Array, depth: int) -> Array:
    """Returns cells `[n, i, o]` or `[n, T, i, o]` as `[1 or T, i, depth, o]`, the missing ones zero."""
    cells = cells.reshape(len(cells), -1, *cells.shape[-2:])
    cells = jnp.pad(cells, ((0, depth - len(cells)), (0, 0), (0, 0), (0, 0)))
    return jnp.moveaxis(cells, 0, 2)


def _make_cell_spec(
    cells: tuple[int, ...], depth: int, rows: int, sum_of: bool = False
) -> pl.BlockSpec:
    """Returns the part of the interleaved cells of a step of the grid (samples, rows, columns, block).

    Args:
        cells: their shape before.
        depth: number of cells, some of them zero.
        rows: rows of a step.
        sum_of: whether they are gradients, for each step along the samples.
    """
    lanes = _choose_lanes(cells[-1])
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


def _make_kernel_spec(
    mix: tuple[int, ...], cells: tuple[int, ...], rows: int, samples: int
) -> pl.BlockSpec:
    """Returns the part of the kernels that a step of the grid (samples, rows, columns, block) has."""
    _, _, p, q, _ = mix
    lanes = _choose_lanes(cells[-1])
    down, across = cells[-2] // rows, cells[-1] // lanes

    def find(b, i, o, m):
        return b, m // (p * q), m % q * down + i, m // q % p * across + o

    return pl.BlockSpec((samples, 1, rows, lanes), find)


def _choose_samples(batch: int) -> int:
    """Returns the samples of a grid step, as many as the matrix unit has columns if possible."""
    return max(n for n in range(8, LANES + 1, 8) if batch % n == 0)


def _choose_rows(i: int, scales: Any = None) -> int:
    return ROWS if i % ROWS == 0 and not scales else TILE


def _choose_lanes(o: int) -> int:
    return LANES if o % LANES == 0 else o


def _count_bytes(samples: int, blocks: int, number: int, i: int, o: int, terms: int) -> int:
    """Counts the bytes of VMEM of the gradient, which needs the most, for kernels in float32."""
    rows, lanes, depth = _choose_rows(i, terms), _choose_lanes(o), round_up(number, 16)
    twice = [(samples, rows, lanes), *2 * [(rows, depth, lanes)], (blocks, samples, 2 * depth)]
    if terms:
        height = 3 * round_up(terms, 16)
        twice += [*2 * [(rows, samples, height)], (blocks, height, o), (samples, 3 * depth)]
    sizes = [2 * count_vmem_bytes(shape, 4) for shape in twice]
    return sum(sizes) + 2 * count_vmem_bytes((TILE * samples, lanes), 4)
