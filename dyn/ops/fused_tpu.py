"""A dynamic convolution in one kernel for TPUs, written in Pallas.

    y_b = sum_t shift_t(x_b) (sum_k c[b, t, k] W_k[t]),   c = mix * taps

A grid step computes a few samples. Their pictures are written into VMEM with their padding, a position a
row and features in the lanes, so that the inputs of each tap are consecutive rows: nothing is shifted and
no patches are made. The vector unit mixes the kernels of a tap in float32 while the matrix unit multiplies
those of another; neither per-sample kernels nor candidates' outputs are written to memory.

The outputs of a row of positions are followed by those of the padding between two rows, which are thrown
away. The gradient for the inputs is the same kernel with transposed and reversed candidates; strides become
dilations.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops.dtypes import choose_matrix_precision
from dyn.ops.geometry import Array, Geometry, Problem, add_height
from dyn.ops.vmem import LANES, count_vmem_bytes, find_vmem_size


def convolve_by_fused_kernel(inputs, kernels, mix, taps, geometry, precision) -> Array:
    """Mixes kernels and convolves with them in one Pallas kernel for TPUs: see `dyn.ops.fused_tpu`."""
    if mix is None and taps is None:
        return geometry.convolve(inputs, kernels[0].astype(inputs.dtype), precision)
    x = inputs.astype(jnp.float32) if inputs.dtype == jnp.float16 else inputs  # not a TPU's dtype
    if mix is not None and mix.ndim > 2:
        from dyn.ops.fused_pixels_tpu import convolve_pixels  # imports Pallas

        return convolve_pixels(x, kernels, mix, geometry, precision).astype(inputs.dtype)
    coefficients = combine_weights(mix, taps, geometry.taps)
    return _convolve(x, kernels, coefficients, geometry, precision).astype(inputs.dtype)


def combine_weights(mix: Array | None, taps: Array | None, number: int) -> Array:
    """Returns c = mix * taps, `[B, T, K]` in float32, of `mix [B, K]` and `taps [B, *k]`, either None."""
    if taps is None:
        assert mix is not None  # at least one of them is there
        return jnp.broadcast_to(mix[:, None], (mix.shape[0], number, mix.shape[1])).astype(
            jnp.float32
        )
    taps = taps.astype(jnp.float32).reshape(taps.shape[0], number, 1)
    return taps if mix is None else taps * mix.astype(jnp.float32)[:, None]


def why_unsupported(problem: Problem) -> str | None:
    """Explains why the kernel cannot solve a problem; None if it can."""
    geometry = problem.geometry
    if not all(isinstance(n, int) for n in (problem.batch, *geometry.spatial)):
        return "the kernel needs a batch and a picture of known size"
    if geometry.rank == 3:
        return "the kernel is for one or two spatial axes"
    if geometry.groups > 1:
        return "the kernel has no groups; their products are too small for a matrix unit"
    if max(geometry.kernel_dilation) > 1 or max(geometry.input_dilation) > 1:
        return "the kernel knows no dilation"
    if any(size % 2 == 0 for size in geometry.size):
        return "the kernel is for odd sizes"
    if any(
        not 0 <= pad < size
        for pads, size in zip(geometry.padding, geometry.size, strict=True)
        for pad in pads
    ):
        return "the padding crops the inputs, or is wider than the kernel"
    if problem.itemsize > 4:
        return "TPUs compute in float32 and bfloat16"
    if problem.pixelwise:
        from dyn.ops import fused_pixels_tpu  # imports Pallas

        return fused_pixels_tpu.why_unsupported(problem)
    for one, kernels in (
        (geometry, problem.kernels),
        (transpose_geometry(geometry), (*problem.kernels[:-2], *problem.kernels[:-3:-1])),
    ):
        if choose_blocks(one, problem.batch, kernels, problem.itemsize) is None:
            return "a picture and its kernels do not fit into VMEM"
    from dyn.ops.fused_tpu_gradient import fits_vmem  # imports Pallas

    if not fits_vmem(geometry, problem.kernels, problem.batch, problem.itemsize):
        return "a picture and its kernels do not fit into VMEM for the gradient"
    return None


def transpose_geometry(geometry: Geometry) -> Geometry:
    """Returns the geometry of the gradient for the inputs: strides become dilations of the input."""
    before = [
        size - 1 - pad for size, (pad, _) in zip(geometry.size, geometry.padding, strict=True)
    ]
    after = [
        n + size - 2 - pad - (out - 1) * stride
        for n, size, pad, out, stride in zip(
            geometry.spatial, geometry.size, before, geometry.out, geometry.strides, strict=True
        )
    ]
    return dataclasses.replace(
        geometry,
        spatial=geometry.out,
        strides=(1,) * geometry.rank,
        padding=tuple(zip(before, after, strict=True)),
        input_dilation=geometry.strides,
        extension=(),
        mode=None,
    )


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the kernel's blocks; along each spatial axis, or the height is one.

    Attributes:
        geometry: geometry with two spatial axes.
        samples: samples of a grid step.
        grouped: taps along the height that are contracted at once because they share the lanes, G.
        features: input features, I.
        columns: output features of a grid step.
    """

    geometry: Geometry
    samples: int
    grouped: int
    features: int
    columns: int

    @property
    def tap_rows(self) -> int:
        """Number of groups of taps along the height, R."""
        return -(-self.geometry.size[0] // self.grouped)

    @property
    def depth(self) -> int:
        """Number of products that one contraction adds up."""
        return self.grouped * self.features

    @property
    def lane_tiles(self) -> int:
        """Number of times that the lanes are needed for the features of a position."""
        return -(-self.depth // LANES)

    @property
    def pitch(self) -> int:
        """Positions from a row of the padded picture to the next."""
        (_, n), (_, (before, after)) = self.geometry.spatial, self.geometry.padding
        stride, dilation = self.geometry.strides[1], self.geometry.input_dilation[1]
        width = before + (n - 1) * dilation + 1 + after
        return -(-width // stride) * stride

    @property
    def height(self) -> int:
        """Rows of the padded picture, for each phase of the vertical stride."""
        geometry, stride = self.geometry, self.geometry.strides[0]
        written = (geometry.spatial[0] - 1) * geometry.input_dilation[0] + geometry.padding[0][0]
        read = (geometry.out[0] - 1) * stride + (self.tap_rows - 1) * self.grouped
        return -(-(max(written, read) + self.grouped) // stride)

    @property
    def rows(self) -> int:
        """Rows of a product: all outputs, and those between two rows that are thrown away."""
        height, width = self.geometry.out
        return (height - 1) * (self.pitch // self.geometry.strides[1]) + width

    @property
    def scales_inputs(self) -> bool:
        """Is true if a single candidate's weight of a tap is multiplied onto the inputs, not the kernel."""
        return self.grouped == 1 and self.rows < self.columns

    def scratch(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the shapes of the padded pictures and of the results, in float32."""
        stride = self.geometry.strides[0]
        padded = (self.samples, stride, self.lane_tiles, self.height * self.pitch, LANES)
        tiles = -(-self.columns // LANES)
        return padded, (self.samples, tiles, self.rows, min(LANES, self.columns))

    def count_bytes(self, num_kernels: int, itemsize: int) -> int:
        """Counts the bytes of VMEM: kernels, scratch, inputs and outputs, of which two are there."""
        geometry = self.geometry
        kernels = (num_kernels, self.tap_rows * geometry.size[1], self.depth, self.columns)
        inputs = (2, self.samples, *geometry.spatial, self.features)
        outputs = (2, self.samples, *geometry.out, self.columns)
        sizes = [count_vmem_bytes(shape, 4) for shape in (kernels, *self.scratch())]
        sizes += [count_vmem_bytes(shape, itemsize) for shape in (inputs, outputs)]
        # A product and a mixed kernel are kept in VMEM too, if registers do not suffice.
        sizes += [count_vmem_bytes((self.depth + self.rows, self.columns), 4)]
        return sum(sizes)


def choose_blocks(
    geometry: Geometry, batch: int, kernels: tuple[int, ...], itemsize: int
) -> Blocks | None:
    """Chooses the largest blocks that fit into VMEM; None if none does."""
    geometry = add_height(geometry)
    features, columns = kernels[-2:]
    # A store with strides cannot begin within the lanes.
    dilated = geometry.input_dilation[1] > 1
    grouped = 1 if dilated else min(geometry.size[0], max(1, LANES // features))
    # Few positions need several samples to keep the matrix unit busy while it waits for first results.
    most = max(1, min(4, 2048 // max(1, geometry.positions)))
    samples = max(n for n in range(1, most + 1) if batch % n == 0)
    choices = [columns, *(n for n in range(columns - LANES, 0, -LANES) if columns % n == 0)]
    for n in choices:
        blocks = Blocks(geometry, samples, grouped, features, n)
        if blocks.count_bytes(kernels[0], itemsize) < 0.9 * find_vmem_size():
            return blocks
    return None


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _convolve(inputs, kernels, coefficients, geometry: Geometry, precision) -> Array:
    return run_kernel(inputs, kernels, coefficients, geometry, precision)


def _convolve_forward(inputs, kernels, coefficients, geometry, precision):
    y = _convolve(inputs, kernels, coefficients, geometry, precision)
    return y, (inputs, kernels, coefficients)


def _convolve_backward(geometry, precision, saved, dy):
    return _compute_gradients(*saved, dy, geometry, precision)


_convolve.defvjp(_convolve_forward, _convolve_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _compute_gradients(inputs, kernels, coefficients, dy, geometry: Geometry, precision):
    """Returns the gradients for the inputs, the kernels and the coefficients."""
    from dyn.ops.fused_tpu_gradient import compute_kernel_gradients

    # Reversed in space, with input and output features exchanged.
    axes = tuple(range(1, geometry.rank + 1))
    transposed = jnp.flip(kernels, axes).swapaxes(-1, -2)
    reversed_taps = jnp.flip(coefficients, 1)
    dx = run_kernel(dy, transposed, reversed_taps, transpose_geometry(geometry), precision)

    d_kernels, d_coefficients = compute_kernel_gradients(
        inputs, dy, kernels, coefficients, geometry, precision=precision
    )
    return dx, d_kernels.astype(kernels.dtype), d_coefficients


def _gradients_forward(*args):
    return _compute_gradients(*args), args[:4]


def _gradients_backward(geometry, precision, saved, cotangents):
    """Differentiates twice through plain XLA operations: the kernel has no second derivative."""

    def gradients(inputs, kernels, coefficients, dy):
        arrays = (inputs, kernels, coefficients)
        convolve = partial(convolve_plainly, geometry=geometry, precision=precision)
        return jax.vjp(convolve, *arrays)[1](dy)

    return jax.vjp(gradients, *saved)[1](cotangents)


_compute_gradients.defvjp(_gradients_forward, _gradients_backward)


def convolve_plainly(inputs, kernels, coefficients, geometry: Geometry, precision) -> Array:
    """Computes the same in plain XLA operations, with a kernel per sample and patches."""
    flat = kernels.reshape(kernels.shape[0], geometry.taps, *kernels.shape[-2:])
    mixed = jnp.einsum(
        "btk,ktio->btio",
        coefficients,
        flat.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
    y = jnp.einsum(
        "bpti,btio->bpo",
        geometry.extract_patches(inputs),
        mixed.astype(inputs.dtype),
        precision=precision,
    )
    return y.reshape(inputs.shape[0], *geometry.out, kernels.shape[-1])


def run_kernel(inputs, kernels, coefficients, geometry: Geometry, precision) -> Array:
    """Runs the Pallas kernel: inputs `[B, *spatial, I]`, coefficients `[B, T, K]`, `[B, *out, O]`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, columns = inputs.shape[0], kernels.shape[-1]
    blocks = choose_blocks(geometry, batch, kernels.shape, inputs.dtype.itemsize)
    assert blocks is not None  # see `why_unsupported`
    samples, two = blocks.samples, blocks.geometry
    x = inputs.reshape(batch, *two.spatial, inputs.shape[-1])
    w, c = group_taps(kernels, coefficients, blocks)
    padded, total = blocks.scratch()
    # Each core of a chip with two takes one half of the batch.
    steps = batch // samples
    halves = 2 if steps % 2 == 0 else 1

    def block(half, _, step):
        return half * (steps // halves) + step

    y = pl.pallas_call(
        partial(
            _convolve_block, blocks=blocks, precision=choose_matrix_precision(x.dtype, precision)
        ),
        grid=(halves, columns // blocks.columns, steps // halves),
        in_specs=[
            pl.BlockSpec(
                (samples, 1, c.shape[-1]),
                lambda *at: (block(*at), 0, 0),
                memory_space=pltpu.SMEM,
            ),
            pl.BlockSpec((samples, *x.shape[1:]), lambda *at: (block(*at), 0, 0, 0)),
            pl.BlockSpec(
                (*w.shape[:-1], blocks.columns),
                lambda half, o, step: (0, 0, 0, 0, o),
                pipeline_mode=pl.Buffered(1),
            ),
        ],
        out_specs=pl.BlockSpec(
            (samples, *two.out, blocks.columns),
            lambda half, o, step: (block(half, o, step), 0, 0, o),
        ),
        out_shape=jax.ShapeDtypeStruct((batch, *two.out, columns), x.dtype),
        scratch_shapes=[pltpu.VMEM(padded, jnp.float32), pltpu.VMEM(total, jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=int(0.95 * find_vmem_size()),
        ),
        name="dynamic_conv",
    )(c, x, w)
    return y.reshape(batch, *geometry.out, columns)


def group_taps(kernels: Array, coefficients: Array, blocks: Blocks) -> tuple[Array, Array]:
    """Returns kernels `[K, R, kw, G*I, O]` and coefficients `[B, 1, R*kw*G*K]`, for groups of G taps.

    Missing taps are zero. A group along the height shares the lanes.
    """
    (height, width), grouped, groups = blocks.geometry.size, blocks.grouped, blocks.tap_rows
    num_kernels, columns = kernels.shape[0], kernels.shape[-1]
    batch, missing = coefficients.shape[0], groups * grouped - height
    w = kernels.reshape(num_kernels, height, width, blocks.features, columns)
    w = jnp.pad(w, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)))
    w = w.reshape(num_kernels, groups, grouped, width, blocks.features, columns).swapaxes(2, 3)
    c = coefficients.reshape(batch, height, width, num_kernels)
    c = jnp.pad(c, ((0, 0), (0, missing), (0, 0), (0, 0)))
    c = c.reshape(batch, groups, grouped, width, num_kernels).swapaxes(2, 3)
    return w.reshape(num_kernels, groups, width, blocks.depth, columns), c.reshape(batch, 1, -1)


def _convolve_block(c_ref, x_ref, w_ref, y_ref, padded, total, *, blocks: Blocks, precision):
    """Convolves the samples of one grid step.

    Args:
        c_ref: coefficients `[N, 1, R*kw*G*K]`, scalars.
        x_ref: inputs `[N, H, W, I]`.
        w_ref: candidates `[K, R, kw, G*I, columns]`.
        y_ref: outputs `[N, H', W', columns]`.
        padded: padded inputs `[N, phases, lane tiles, rows, 128]`.
        total: results `[N, lane tiles, rows, up to 128]`.
        blocks: sizes.
        precision: of the products.
    """
    from jax.experimental import pallas as pl

    @pl.when(pl.program_id(2) == 0)
    def _():  # the padding stays zero afterwards
        padded[...] = jnp.zeros_like(padded)

    samples, tiles = range(blocks.samples), range(total.shape[1])
    for n in samples:
        _write_padded(x_ref.at[n], padded.at[n], blocks)
    total[...] = jnp.zeros_like(total)

    def add_tap_row(i, carry):
        for n in samples:
            result = _multiply_tap_row(c_ref, padded, w_ref, n, i, blocks, x_ref.dtype, precision)
            for tile in tiles:
                part = result[:, _lanes(tile, blocks.columns)]
                total[n, tile, :, : part.shape[1]] += part
        return carry

    lax.fori_loop(0, blocks.tap_rows, add_tap_row, 0)
    (height, width), stride = blocks.geometry.out, blocks.geometry.strides[1]

    def write_row(h, carry):
        for n in samples:
            start = h * (blocks.pitch // stride)
            for tile in tiles:
                lanes = _lanes(tile, blocks.columns)
                y = total[n, tile, pl.ds(start, width), : lanes.stop - lanes.start]
                y_ref[n, h, :, lanes] = y.astype(y_ref.dtype)
        return carry

    _repeat(height, write_row)


def _write_padded(x_ref, padded, blocks: Blocks):
    """Writes a sample into VMEM with its padding; taps that share the lanes follow each other there."""
    from jax.experimental import pallas as pl

    geometry, features = blocks.geometry, blocks.features
    (height, width), phases = geometry.spatial, geometry.strides[0]
    (top, _), (left, _) = geometry.padding
    above = blocks.grouped - 1  # the first taps of a group lie so many rows before the last

    def write_row(h, carry):
        x = x_ref[h].astype(jnp.float32)
        for g in range(blocks.grouped):
            row = h * geometry.input_dilation[0] + top + above - g
            start = row // phases * blocks.pitch + left
            to = pl.ds(start, width, stride=geometry.input_dilation[1])
            for tile in range(-(-features // LANES)):
                part = x[:, _lanes(tile, features)]
                lanes = slice(g * features, g * features + part.shape[1])
                padded[row % phases, tile, to, lanes] = part
        return carry

    _repeat(height, write_row)


def _repeat(number: int, step: Callable[[Any, Any], Any]):
    """Repeats a step, several times per turn of a loop so that the latencies of their loads overlap."""
    lax.fori_loop(0, number, step, 0, unroll=math.gcd(number, 8))


def _lanes(tile: int, features: int) -> slice:
    """Returns the features that lie in one tile of lanes."""
    return slice(tile * LANES, min((tile + 1) * LANES, features))


def _multiply_tap_row(c_ref, padded, w_ref, n, i, blocks: Blocks, dtype, precision) -> Any:
    """Returns the sum over the i-th group of rows of taps, `[rows, columns]` in float32."""
    from jax.experimental import pallas as pl

    num_kernels, width, features = w_ref.shape[0], blocks.geometry.size[1], blocks.features
    phases, stride = blocks.geometry.strides
    scales_inputs = num_kernels == 1 and blocks.scales_inputs
    row = i * blocks.grouped + blocks.grouped - 1
    result = jnp.zeros((blocks.rows, blocks.columns), jnp.float32)
    for j in range(width):
        first = (i * width + j) * blocks.grouped
        if scales_inputs:
            w = w_ref[0, i, j]
        else:
            w = jnp.concatenate(
                [
                    _mix_candidates(w_ref, c_ref, n, (i, j, g), first + g, features)
                    for g in range(blocks.grouped)
                ]
            )
        start = row // phases * blocks.pitch + j
        for tile in range(blocks.lane_tiles):
            depth = min(LANES, blocks.depth - tile * LANES)
            x = padded[n, row % phases, tile, pl.ds(start, blocks.rows, stride=stride)]
            if scales_inputs:
                x = x * c_ref[n, 0, first]
            result += jnp.dot(
                x[:, :depth].astype(dtype),
                w[tile * LANES : tile * LANES + depth].astype(dtype),
                precision=precision,
                preferred_element_type=jnp.float32,
            )
    return result


def _mix_candidates(w_ref, c_ref, n, place: tuple[Any, int, int], tap, features: int) -> Array:
    """Returns sum_k c[n, tap, k] W_k for one tap, `[I, columns]` in float32."""
    from jax.experimental import pallas as pl

    i, j, g = place
    rows = pl.ds(g * features, features)
    num_kernels = w_ref.shape[0]
    mixed = w_ref[0, i, j, rows].astype(jnp.float32) * c_ref[n, 0, tap * num_kernels]
    for k in range(1, num_kernels):
        mixed += w_ref[k, i, j, rows].astype(jnp.float32) * c_ref[n, 0, tap * num_kernels + k]
    return mixed
