"""A convolution with a mixture of kernels at each position in three kernels for TPUs, written in Pallas.

    y[b, p] = sum_k m[b, p, k] sum_t x[b, p + t] W_k[t]

Samples are in the lanes and features in the rows, as XLA itself lays out activations with few features: a
shift is an address, a mixture is spread over the rows of a position, and the inputs of a row of taps lie
behind each other. A grid step computes one row of positions of 128 samples. Neither patches nor candidates'
outputs are written to memory:

    z[p] = [W_k[t]] x[p + t]            y[p] = sum_k m[p, k] z[p, k]
    s[p, t] = [W_k[t]]^T dy[p]          dx[p + t] += sum_k m[p, k] s[p, t, k]
                                        dm[p, k] = sum_t <x[p + t], s[p, t, k]>
    dW[t] += x[p + t] [m[p, k] dy[p]]^T

The brackets are one matrix with the K candidates below each other. The products s serve both dx and dm, which
thus needs no z. A training step has 3 K products of the size of a static layer's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dyn.ops.dtypes import choose_matrix_precision
from dyn.ops.geometry import Array, Geometry, Problem, add_height
from dyn.ops.vmem import (
    LANES,
    SUBLANES,
    VMEM_SHARE,
    count_vmem_bytes,
    fill_axis,
    find_vmem_size,
    make_parameters,
    round_up,
)


def why_unsupported(problem: Problem) -> str | None:
    """Explains why the kernels cannot solve a pixel-wise problem that `fused_tpu` could; None if they can."""
    if problem.tap_attention:
        return "the kernel for pixel-wise mixtures knows no tap attention"
    if _count_bytes(problem) > VMEM_SHARE * find_vmem_size():
        return "rows of a picture and the kernels do not fit into VMEM"
    return None


def why_slow(problem: Problem) -> str | None:
    """Explains why XLA's own convolutions are faster for a pixel-wise problem; None if they are not."""
    if problem.batch % LANES:
        return f"its lanes are samples, and {problem.batch} are no multiple of {LANES}"
    tile = 32 // problem.itemsize
    if any(features % tile for features in problem.kernels[-2:]):
        return f"its rows are features, which do not fill tiles of {tile}"
    if max(problem.kernels[-2:]) > 2 * LANES:
        return "for many features the K convolutions are as fast"
    return None


def _count_bytes(problem: Problem) -> int:
    """Returns the bytes of VMEM of the kernel that needs most; blocks are there twice."""
    geometry, itemsize = add_height(problem.geometry), problem.itemsize
    num_kernels = problem.kernels[0]
    features, filters = (round_up(n, 32 // itemsize) for n in problem.kernels[-2:])
    rows, taps, wide = geometry.size[0], geometry.taps, _pad_width(geometry)
    x = (geometry.spatial[1], features, LANES)
    y, m = (geometry.out[1], filters, LANES), (geometry.out[1], num_kernels, LANES)
    padded = (wide, features, LANES)
    w = (num_kernels * filters, taps * features)
    forward = [(2 * rows, x, itemsize), (2, m, 4), (2, y, itemsize), (1, w, itemsize)]
    forward += [(rows, padded, itemsize)]
    inputs = [(4, x, itemsize), (2, y, itemsize), (4, m, 4)]
    inputs += [(1, (taps * num_kernels * features, filters), itemsize)]
    inputs += [(1, padded, itemsize), (1, padded, 4)]
    kernels = [(2 * rows, x, itemsize), (2, m, 4), (2, y, itemsize), (rows, padded, itemsize)]
    kernels += [(2, (taps * features, num_kernels * filters), 4)]
    # Registers do not suffice for the products of two positions.
    spilled = 2 * count_vmem_bytes((num_kernels * max(features, filters), LANES), 4)
    return spilled + max(
        sum(number * count_vmem_bytes(shape, size) for number, shape, size in arrays)
        for arrays in (forward, inputs, kernels)
    )


def convolve_pixels(inputs, kernels, mix, geometry: Geometry, precision) -> Array:
    """Convolves with a mixture at each position in one Pallas kernel: see `dyn.ops.fused_pixels_tpu`.

    Args:
        inputs: `[B, *spatial, I]` in float32 or bfloat16.
        kernels: `[K, *k, I, O]`.
        mix: `[B, *out, K]`.
        geometry: geometry for which `why_unsupported` knows no reason.
        precision: of the products of float32 arrays.
    """
    batch, filters = inputs.shape[0], kernels.shape[-1]
    rows = 32 // inputs.dtype.itemsize
    x = fill_axis(fill_axis(inputs, 0, LANES), -1, rows)
    w = fill_axis(fill_axis(kernels, -2, rows), -1, rows)
    m = fill_axis(mix.astype(jnp.float32), 0, LANES)
    return _convolve(x, w, m, geometry, precision)[:batch, ..., :filters]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _convolve(inputs, kernels, mix, geometry: Geometry, precision) -> Array:
    return run_forward(inputs, kernels, mix, geometry, precision)


def _convolve_forward(inputs, kernels, mix, geometry, precision):
    return _convolve(inputs, kernels, mix, geometry, precision), (inputs, kernels, mix)


def _convolve_backward(geometry, precision, saved, dy):
    return _compute_gradients(*saved, dy, geometry, precision)


_convolve.defvjp(_convolve_forward, _convolve_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _compute_gradients(inputs, kernels, mix, dy, geometry: Geometry, precision):
    """Returns the gradients for the inputs, the kernels and the mixture."""
    arguments = (inputs, kernels, mix, dy, geometry, precision)
    dx, d_mix = run_input_gradient(*arguments)
    return dx, run_kernel_gradient(*arguments).astype(kernels.dtype), d_mix


def _gradients_forward(*args):
    return _compute_gradients(*args), args[:4]


def _gradients_backward(geometry, precision, saved, cotangents):
    """Differentiates twice through plain XLA operations: the kernels have no second derivative."""

    def gradients(inputs, kernels, mix, dy):
        arrays = (inputs, kernels, mix)
        convolve = partial(convolve_plainly, geometry=geometry, precision=precision)
        return jax.vjp(convolve, *arrays)[1](dy)

    return jax.vjp(gradients, *saved)[1](cotangents)


_compute_gradients.defvjp(_gradients_forward, _gradients_backward)


def convolve_plainly(inputs, kernels, mix, geometry: Geometry, precision) -> Array:
    """Computes the same in plain XLA operations: K convolutions, mixed afterwards."""
    y = [geometry.convolve(inputs, w.astype(inputs.dtype), precision) for w in kernels]
    z = jnp.stack(y, -1).astype(jnp.float32)
    mixed = jnp.einsum("...ok,...k->...o", z, mix, precision=lax.Precision.HIGHEST)
    return mixed.astype(inputs.dtype)


def run_forward(inputs, kernels, mix, geometry: Geometry, precision) -> Array:
    """Runs the kernel of the forward pass: `[B, *out, O]`."""
    two, (num_kernels, *_, features, filters) = add_height(geometry), kernels.shape
    height, width = two.out
    x, m = (_put_samples_last(a, shape) for a, shape in ((inputs, two.spatial), (mix, two.out)))
    w = kernels.reshape(num_kernels, two.taps * features, filters).swapaxes(1, 2)
    w = w.reshape(num_kernels * filters, -1).astype(x.dtype)
    y = pl.pallas_call(
        partial(
            _convolve_row, geometry=two, precision=choose_matrix_precision(inputs.dtype, precision)
        ),
        grid=(x.shape[-1] // LANES, height),
        in_specs=[_block_row(m, lambda h: h), _block_whole(w), *_block_tap_rows(x, two)],
        out_specs=pl.BlockSpec((1, width, filters, LANES), lambda b, h: (h, 0, 0, b)),
        out_shape=jax.ShapeDtypeStruct((height, width, filters, x.shape[-1]), x.dtype),
        scratch_shapes=[_pad_rows(two, two.size[0], features, x.dtype)],
        compiler_params=make_parameters("parallel", "arbitrary"),
        name="pixel_conv",
    )(m, w, *[x] * two.size[0])
    return _put_samples_first(y, geometry.out)


def run_input_gradient(inputs, kernels, mix, dy, geometry: Geometry, precision):
    """Runs the kernel of the gradients for the inputs and for the mixture, `[B, *out, K]`."""
    two, (num_kernels, *_, features, filters) = add_height(geometry), kernels.shape
    height, (rows, columns) = two.out[0], two.size
    x = _put_samples_last(inputs, two.spatial)
    m, dy = (_put_samples_last(a, two.out) for a in (mix, dy))
    w = kernels.reshape(num_kernels, two.taps, features, filters).swapaxes(0, 1)
    w = w.reshape(rows, columns, num_kernels * features, filters).astype(x.dtype)

    # The innermost axis of the grid are the rows of taps, so that each step meets one row of outputs.
    def find_output(b, q, i):
        return jnp.clip(_find_output(q, i, two)[0], 0, height - 1), 0, 0, b

    def find_input(b, q, i):
        return q, 0, 0, b

    dx, d_mix = pl.pallas_call(
        partial(
            _differentiate_inputs_row,
            geometry=two,
            precision=choose_matrix_precision(inputs.dtype, precision),
        ),
        grid=(x.shape[-1] // LANES, two.spatial[0], rows),
        in_specs=[
            pl.BlockSpec((1, *m.shape[1:3], LANES), find_output),
            pl.BlockSpec((1, *dy.shape[1:3], LANES), find_output),
            pl.BlockSpec((1, *x.shape[1:3], LANES), find_input),
            _block_whole(w),
        ],
        out_specs=[
            pl.BlockSpec((1, *x.shape[1:3], LANES), find_input),
            pl.BlockSpec((1, 1, *m.shape[1:3], LANES), lambda b, q, i: (q, i, 0, 0, b)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((two.spatial[0], rows, *m.shape[1:]), jnp.float32),
        ],
        scratch_shapes=[
            _pad_rows(two, 1, features, x.dtype),
            _pad_rows(two, 1, features, jnp.float32),
        ],
        compiler_params=make_parameters("parallel", "arbitrary", "arbitrary"),
        name="pixel_conv_input_gradient",
    )(m, dy, x, w)
    total: Any = sum(_gather_rows(d_mix[:, i], i, two) for i in range(rows))
    return _put_samples_first(dx, geometry.spatial), _put_samples_first(total, geometry.out)


def _gather_rows(x: Array, i: int, geometry: Geometry) -> Array:
    """Returns the rows of x, as many as inputs, that the rows of outputs meet with tap row i, or zeros."""
    stride, before = geometry.strides[0], geometry.padding[0][0] - i
    length = (geometry.out[0] - 1) * stride + 1
    ends = [(before, length - x.shape[0] - before, 0), *[(0, 0, 0)] * (x.ndim - 1)]
    return lax.pad(x, jnp.zeros((), x.dtype), ends)[::stride]


def run_kernel_gradient(inputs, kernels, mix, dy, geometry: Geometry, precision) -> Array:
    """Runs the kernel of the gradient for the candidates, `[K, *k, I, O]` in float32."""
    two, (num_kernels, *_, features, filters) = add_height(geometry), kernels.shape
    x = _put_samples_last(inputs, two.spatial)
    m, dy = (_put_samples_last(a, two.out) for a in (mix, dy))
    shape = (two.taps * features, num_kernels * filters)
    dw = pl.pallas_call(
        partial(
            _differentiate_kernels_row,
            geometry=two,
            precision=choose_matrix_precision(inputs.dtype, precision),
        ),
        grid=(x.shape[-1] // LANES, two.out[0]),
        in_specs=[
            _block_row(m, lambda h: h),
            _block_row(dy, lambda h: h),
            *_block_tap_rows(x, two),
        ],
        out_specs=pl.BlockSpec(shape, lambda b, h: (0, 0)),
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        scratch_shapes=[_pad_rows(two, two.size[0], features, x.dtype)],
        compiler_params=make_parameters("arbitrary", "arbitrary"),
        name="pixel_conv_kernel_gradient",
    )(m, dy, *[x] * two.size[0])
    dw = dw.reshape(two.taps * features, num_kernels, filters)
    return dw.swapaxes(0, 1).reshape(kernels.shape)


def _put_samples_last(x: Array, spatial: Sequence[int]) -> Array:
    """Returns `[height, width, C, B]` of `[B, *spatial, C]`."""
    return jnp.transpose(x.reshape(x.shape[0], *spatial, x.shape[-1]), (1, 2, 3, 0))


def _put_samples_first(x: Array, spatial: Sequence[int]) -> Array:
    """Returns `[B, *spatial, C]` of `[height, width, C, B]`."""
    return jnp.transpose(x, (3, 0, 1, 2)).reshape(x.shape[-1], *spatial, x.shape[2])


def _block_row(x: Array, find_row: Callable[[Any], Any]) -> pl.BlockSpec:
    """Returns the block of one row of `[height, width, C, B]`."""
    return pl.BlockSpec((1, *x.shape[1:3], LANES), lambda b, h: (find_row(h), 0, 0, b))


def _block_whole(w: Array) -> pl.BlockSpec:
    """Returns the block of a whole array."""
    return pl.BlockSpec(w.shape, lambda *_: (0,) * w.ndim, pipeline_mode=pl.Buffered(1))


def _block_tap_rows(x: Array, geometry: Geometry) -> list[pl.BlockSpec]:
    """Returns blocks of the rows of inputs that a row of outputs meets, one for each row of taps."""
    last = geometry.spatial[0] - 1

    def find(i: int) -> Callable[[Any], Any]:
        return lambda h: jnp.clip(h * geometry.strides[0] + i - geometry.padding[0][0], 0, last)

    return [_block_row(x, find(i)) for i in range(geometry.size[0])]


def _pad_width(geometry: Geometry) -> int:
    """Returns the width of a row of inputs with its padding."""
    read = (geometry.out[1] - 1) * geometry.strides[1] + geometry.size[1]
    return max(geometry.padding[1][0] + geometry.spatial[1], read)


def _pad_rows(geometry: Geometry, rows: int, features: int, dtype) -> Any:
    """Returns memory for rows of inputs with their padding."""
    return pltpu.VMEM((rows, _pad_width(geometry), features, LANES), dtype)


def _find_output(q: Any, i: Any, geometry: Geometry) -> tuple[Any, Any]:
    """Returns the row of outputs that meets row q of the inputs with tap row i, and whether it exists."""
    shifted, stride = q + geometry.padding[0][0] - i, geometry.strides[0]
    row = shifted // stride
    return row, (shifted >= 0) & (row < geometry.out[0]) & (row * stride == shifted)


def _write_rows(x_refs: Sequence[Any], padded, geometry: Geometry):
    """Writes the rows of inputs that a row of outputs meets between zeros."""
    for i, x_ref in enumerate(x_refs):
        row = pl.program_id(1) * geometry.strides[0] + i - geometry.padding[0][0]
        inside = (row >= 0) & (row < geometry.spatial[0])
        _write_row(x_ref, padded.at[i], geometry, inside)


def _write_row(x_ref, padded, geometry: Geometry, inside: Any = True):
    """Writes a row of inputs between zeros; all zeros if it is not inside the picture."""
    left, width = geometry.padding[1][0], geometry.spatial[1]
    for start, end in ((0, left), (left + width, padded.shape[0])):
        if start < end:
            padded[start:end] = jnp.zeros((end - start, *padded.shape[1:]), padded.dtype)
    padded[left : left + width] = jnp.where(inside, x_ref[0], jnp.zeros_like(x_ref[0]))


def _read_patch(padded, w, geometry: Geometry) -> Array:
    """Returns the inputs that position w of a row meets, `[T * I, 128]`."""
    rows, columns = geometry.size
    taps = pl.ds(w * geometry.strides[1], columns)
    patch = [padded[i, taps].reshape(columns * padded.shape[2], LANES) for i in range(rows)]
    return jnp.concatenate(patch)


def _repeat(number: int, step: Callable[[Any], None], most: int = 4):
    """Repeats a step, several times per turn of a loop so that latencies overlap."""
    unroll = max(n for n in range(1, most + 1) if number % n == 0)
    lax.fori_loop(0, number, lambda n, carry: step(n), None, unroll=unroll)


def _convolve_row(
    m_ref,  # [1, W', K, 128]
    w_ref,  # [K * O, T * I]
    *refs,  # rows of inputs [1, W, I, 128], one for each row of taps; y [1, W', O, 128]; padded
    geometry: Geometry,
    precision,
):
    """Convolves one row of positions."""
    *x_refs, y_ref, padded = refs
    _write_rows(x_refs, padded, geometry)
    filters, num_kernels = y_ref.shape[2], m_ref.shape[2]

    def convolve(w):
        z = jnp.dot(
            w_ref[...],
            _read_patch(padded, w, geometry),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        y: Any = sum(
            m_ref[0, w, k : k + 1] * z[k * filters : (k + 1) * filters] for k in range(num_kernels)
        )
        y_ref[0, w] = y.astype(y_ref.dtype)

    _repeat(geometry.out[1], convolve)


def _differentiate_inputs_row(
    m_ref,  # [1, W', K, 128]
    dy_ref,  # [1, W', O, 128]
    x_ref,  # [1, W, I, 128]
    w_ref,  # [kh, kw, K * I, O]
    dx_ref,  # like x_ref
    dm_ref,  # like m_ref, with another axis in front
    padded,  # [1, padded W, I, 128]
    d_padded,  # likewise, in float32
    *,
    geometry: Geometry,
    precision,
):
    """Adds what one row of taps gives to dx of a row of inputs, and computes its share of dm."""
    num_kernels, features = m_ref.shape[2], x_ref.shape[2]
    row, (left, _) = pl.program_id(2), geometry.padding[1]

    @pl.when(row == 0)
    def _():
        _write_row(x_ref, padded.at[0], geometry)
        d_padded[...] = jnp.zeros_like(d_padded)

    def add_position(w):
        dy, sums = dy_ref[0, w], [0.0] * num_kernels
        for j in range(geometry.size[1]):
            s = jnp.dot(w_ref[row, j], dy, precision=precision, preferred_element_type=jnp.float32)
            at = w * geometry.strides[1] + j
            x, total = padded[0, at].astype(jnp.float32), d_padded[0, at]
            for k in range(num_kernels):
                part = s[k * features : (k + 1) * features]
                total += m_ref[0, w, k : k + 1] * part
                # The sums over features of different registers; those within one follow.
                sums[k] += (x * part).reshape(-1, SUBLANES, LANES).sum(0)
            d_padded[0, at] = total
        for k in range(num_kernels):
            dm_ref[0, 0, w, k : k + 1] = jnp.sum(sums[k], axis=0, keepdims=True)

    @pl.when(_find_output(pl.program_id(1), row, geometry)[1])
    def _():
        _repeat(geometry.out[1], add_position)

    @pl.when(row == geometry.size[0] - 1)
    def _():
        dx_ref[0] = d_padded[0, left : left + geometry.spatial[1]].astype(dx_ref.dtype)


def _differentiate_kernels_row(
    m_ref,  # [1, W', K, 128]
    dy_ref,  # [1, W', O, 128]
    *refs,  # rows of inputs [1, W, I, 128], one for each row of taps; dw [T * I, K * O]; padded
    geometry: Geometry,
    precision,
):
    """Adds the share of one row of positions to the gradient for the candidates."""
    *x_refs, dw_ref, padded = refs
    _write_rows(x_refs, padded, geometry)
    num_kernels = m_ref.shape[2]

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        dw_ref[...] = jnp.zeros_like(dw_ref)

    def add_position(w):
        dy = dy_ref[0, w].astype(jnp.float32)
        weighted = jnp.concatenate([m_ref[0, w, k : k + 1] * dy for k in range(num_kernels)])
        dw_ref[...] += lax.dot_general(
            _read_patch(padded, w, geometry),
            weighted.astype(dy_ref.dtype),
            (((1,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )

    _repeat(geometry.out[1], add_position)
