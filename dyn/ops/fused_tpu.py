"""A dynamic convolution in one kernel for TPUs, written in Pallas.

    y_b = f_b sum_t shift_t(a_b x_b) (sum_k c[b, t, k] W_k[t]),   c = mix * taps

with weights a of input features (channels) and f of output features (filters). A grid step computes a few
samples. Their pictures are written into VMEM with their padding, a position a row and features in the
lanes, so that the inputs of each tap are consecutive rows: nothing is shifted and no patches are made. The
vector unit mixes the kernels of a tap in float32 while the matrix unit multiplies those of another; neither
per-sample kernels nor candidates' outputs are written to memory. Inputs and outputs are weighted on their
way. Few features leave lanes empty: then several positions of a row lie beside each other, see
`dyn.ops.packing`.

The outputs of a row of positions are followed by those of the padding between two rows, which are thrown
away. The gradient for the inputs is the same kernel with transposed and reversed candidates; strides become
dilations. It meets the inputs once more for the gradient of their weights, sum_p x dx/a.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops.dtypes import choose_matrix_precision
from dyn.ops.geometry import Array, Geometry, Problem, add_height
from dyn.ops.packing import Packing, plan_packing
from dyn.ops.vmem import LANES, count_vmem_bytes, find_vmem_size, keep_layout, make_parameters


def convolve_by_fused_kernel(
    inputs, kernels, mix, taps, geometry, precision, *, channels=None, filters=None
) -> Array:
    """Mixes kernels and convolves with them in one Pallas kernel for TPUs: see `dyn.ops.fused_tpu`.

    `channels [B, I]` and `filters [B, O]` are multiplied onto the inputs and the outputs.
    """
    if mix is None and taps is None:
        return geometry.convolve(inputs, kernels[0].astype(inputs.dtype), precision)
    x = inputs.astype(jnp.float32) if inputs.dtype == jnp.float16 else inputs  # not a TPU's dtype
    if mix is not None and mix.ndim > 2:
        from dyn.ops.fused_pixels_tpu import convolve_pixels  # imports Pallas

        return convolve_pixels(x, kernels, mix, geometry, precision).astype(inputs.dtype)
    coefficients = combine_weights(mix, taps, geometry.taps)
    scales = None
    if channels is not None or filters is not None:
        scales = tuple(
            jnp.ones((x.shape[0], number), jnp.float32) if one is None else one.astype(jnp.float32)
            for one, number in ((channels, x.shape[-1]), (filters, kernels.shape[-1]))
        )
    return _convolve(x, kernels, coefficients, scales, geometry, precision).astype(inputs.dtype)


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
    if why := explain_limits(geometry, problem.batch, problem.itemsize):
        return why
    if problem.pixelwise:
        from dyn.ops import fused_pixels_tpu  # imports Pallas

        return fused_pixels_tpu.why_unsupported(problem)
    for one, transposed in ((geometry, False), (transpose_geometry(geometry), True)):
        sizes = (one, problem.batch, problem.kernels, problem.itemsize)
        if choose_blocks(*sizes, beside=transposed, transposed=transposed) is None:
            return "a picture and its kernels do not fit into VMEM"
    from dyn.ops.fused_tpu_gradient import fits_vmem  # imports Pallas

    if not fits_vmem(geometry, problem.kernels, problem.batch, problem.itemsize):
        return "a picture and its kernels do not fit into VMEM for the gradient"
    return None


def explain_limits(geometry: Geometry, batch: int, itemsize: int) -> str | None:
    """Explains why a kernel of this form cannot do a convolution, whatever its size; None if it can."""
    if not all(isinstance(n, int) for n in (batch, *geometry.spatial)):
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
    if itemsize > 4:
        return "TPUs compute in float32 and bfloat16"
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
        packing: positions beside each other in the lanes, and the geometry of what is packed.
        samples: samples of a grid step.
        grouped: taps along the height that are contracted at once because they share the lanes, G.
        features: input features of packed positions, I.
        columns: output features of packed positions in a grid step.
        per_sample: each sample has a kernel of its own, and nothing is mixed.
        backwards: taps are those of the convolution whose gradient this is: they are read in reverse.
        transposed: its kernels `[O, I]` too.
        beside: buffers for inputs of the outputs' shape, see `run_kernel`.
    """

    packing: Packing
    samples: int
    grouped: int
    features: int
    columns: int
    per_sample: bool = False
    backwards: bool = False
    transposed: bool = False
    beside: int = 0

    @property
    def geometry(self) -> Geometry:
        """Geometry of packed positions, with two spatial axes."""
        return self.packing.geometry

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
        width = before + (n - 1) * dilation + 1 + max(after, self.packing.offset > 0)
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
        alone = not self.per_sample and self.grouped == self.packing.number == 1
        return alone and self.rows < self.columns

    @property
    def matrix(self) -> tuple[int, int]:
        """Shape of the part of a kernel that a contraction takes, or is put together from."""
        depth, columns = self.depth // self.packing.number, self.columns // self.packing.number
        return (columns, depth) if self.transposed else (depth, columns)

    def scratch(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the shapes of the padded pictures and of the results, in float32."""
        stride = self.geometry.strides[0]
        padded = (self.samples, stride, self.lane_tiles, self.height * self.pitch, LANES)
        tiles = -(-self.columns // LANES)
        return padded, (self.samples, tiles, self.rows, min(LANES, self.columns))

    def count_bytes(self, num_kernels: int, itemsize: int, kernel_itemsize: int = 4) -> int:
        """Counts the bytes of VMEM: kernels, scratch, inputs and outputs, of which two are there."""
        geometry = self.geometry
        kernels = (num_kernels, self.tap_rows * self.packing.width, *self.matrix)
        inputs = (2, self.samples, *geometry.spatial, self.features)
        outputs = (2 + self.beside, self.samples, *geometry.out, self.columns)
        sizes = [count_vmem_bytes(kernels, kernel_itemsize)]
        sizes += [count_vmem_bytes(shape, 4) for shape in self.scratch()]
        sizes += [count_vmem_bytes(shape, itemsize) for shape in (inputs, outputs)]
        # A product and a mixed kernel are kept in VMEM too, if registers do not suffice.
        sizes += [count_vmem_bytes((self.depth + self.rows, self.columns), 4)]
        return sum(sizes)


def choose_blocks(
    geometry: Geometry,
    batch: int,
    kernels: tuple[int, ...],
    itemsize: int,
    *,
    beside: bool,
    transposed: bool = False,
) -> Blocks | None:
    """Chooses the largest blocks that fit into VMEM; None if none does.

    Args:
        geometry, batch: of the convolution.
        kernels: shape of the candidates, `(K, *k, I, O)`.
        itemsize: bytes of a number of the inputs.
        beside: whether there are inputs of the outputs' shape, see `run_kernel`.
        transposed: whether the candidates are those of the convolution whose gradient this is.
    """
    geometry = add_height(geometry)
    features, columns = kernels[:-3:-1] if transposed else kernels[-2:]
    packing = plan_packing(geometry, features, columns)
    features, columns = packing.number * features, packing.number * columns
    samples, grouped = choose_samples(geometry, batch)[0], count_grouped(packing, features)
    # The next inputs are fetched while these are worked on, if there is room.
    for n, buffers in itertools.product(choose_columns(columns), (2, 1) if beside else (0,)):
        backwards = transposed and grouped == 1
        blocks = Blocks(packing, samples, grouped, features, n, backwards=backwards, beside=buffers)
        if blocks.count_bytes(kernels[0], itemsize) < 0.9 * find_vmem_size():
            return blocks
    return None


def choose_samples(geometry: Geometry, batch: int) -> list[int]:
    """Returns the numbers of samples that a grid step can compute, the best first.

    Few positions need several samples to keep the matrix unit busy while it waits for first results.
    """
    most = max(1, min(4, 2048 // max(1, geometry.positions)))
    return [n for n in range(most, 0, -1) if batch % n == 0]


def choose_columns(columns: int) -> list[int]:
    """Returns the numbers of output features that a grid step can compute, all or whole tiles of lanes."""
    tiles = range(columns // LANES, 0, -1) if columns % LANES == 0 else ()
    return list(dict.fromkeys([columns, *(n * LANES for n in tiles if columns % (n * LANES) == 0)]))


def count_grouped(packing: Packing, features: int) -> int:
    """Returns the number of taps along the height that share the lanes, G; positions that do leave one."""
    geometry = packing.geometry
    # A store with strides cannot begin within the lanes.
    dilated = geometry.input_dilation[1] > 1
    if dilated or packing.number > 1:
        return 1
    return min(geometry.size[0], max(1, LANES // features))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _convolve(inputs, kernels, coefficients, scales, geometry: Geometry, precision) -> Array:
    """Runs the kernel; scales are `(channels [B, I], filters [B, O])` in float32, or None for ones."""
    return run_kernel(inputs, kernels, coefficients, scales, geometry, precision)[0]


def _convolve_forward(inputs, kernels, coefficients, scales, geometry, precision):
    y = _convolve(inputs, kernels, coefficients, scales, geometry, precision)
    return y, (inputs, kernels, coefficients, scales)


def _convolve_backward(geometry, precision, saved, dy):
    return _compute_gradients(*saved, dy, geometry, precision)


_convolve.defvjp(_convolve_forward, _convolve_backward)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _compute_gradients(inputs, kernels, coefficients, scales, dy, geometry: Geometry, precision):
    """Returns the gradients for the inputs, the kernels, the coefficients and the scales."""
    from dyn.ops.fused_tpu_gradient import compute_kernel_gradients

    scaled = scales is not None
    dx, d_channels = run_kernel(
        *(dy, kernels, coefficients, scales and scales[::-1]),
        *(transpose_geometry(geometry), precision),
        beside=inputs if scaled else None,
        transposed=True,
    )
    d_kernels, d_coefficients, d_filters = compute_kernel_gradients(
        inputs, dy, kernels, coefficients, scales, geometry, precision=precision
    )
    d_scales = (d_channels, d_filters) if scaled else None
    return dx, d_kernels.astype(kernels.dtype), d_coefficients, d_scales


def _gradients_forward(*args):
    return _compute_gradients(*args), args[:5]


def _gradients_backward(geometry, precision, saved, cotangents):
    """Differentiates twice through plain XLA operations: the kernel has no second derivative."""

    def gradients(inputs, kernels, coefficients, scales, dy):
        arrays = (inputs, kernels, coefficients, scales)
        convolve = partial(convolve_plainly, geometry=geometry, precision=precision)
        return jax.vjp(convolve, *arrays)[1](dy)

    return jax.vjp(gradients, *saved)[1](cotangents)


_compute_gradients.defvjp(_gradients_forward, _gradients_backward)


def convolve_plainly(inputs, kernels, coefficients, scales, geometry: Geometry, precision) -> Array:
    """Computes the same in plain XLA operations, with a kernel per sample and patches."""
    flat = kernels.reshape(kernels.shape[0], geometry.taps, *kernels.shape[-2:])
    mixed = jnp.einsum(
        "btk,ktio->btio",
        coefficients,
        flat.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
    if scales is not None:
        channels, filters = scales
        mixed *= channels[:, None, :, None] * filters[:, None, None, :]
    y = jnp.einsum(
        "bpti,btio->bpo",
        geometry.extract_patches(inputs),
        mixed.astype(inputs.dtype),
        precision=precision,
    )
    return y.reshape(inputs.shape[0], *geometry.out, kernels.shape[-1])


def run_kernel(
    inputs,
    kernels,
    coefficients,
    scales,
    geometry: Geometry,
    precision,
    *,
    beside=None,
    transposed: bool = False,
) -> tuple[Array, Array | None]:
    """Runs the Pallas kernel.

    Args:
        inputs: `[B, *spatial, I]`.
        kernels: `[K, *k, I, O]`.
        coefficients: `[B, T, K]` in float32.
        scales: weights `[B, I]` of the inputs and `[B, O]` of the outputs in float32, or None.
        geometry: strides, padding with zeros, dilation of the inputs.
        precision: of the products of float32 arrays.
        beside: `[B, *out, O]`, whose products with the outputs are summed over positions.
        transposed: kernels `[K, *k, O, I]` and coefficients are those of the convolution whose gradient
            this is.

    Returns:
        `[B, *out, O]`, and with `beside` the sums `[B, O]` in float32, before outputs are weighted.
    """
    blocks = choose_blocks(
        *(geometry, inputs.shape[0], kernels.shape, inputs.dtype.itemsize),
        beside=beside is not None,
        transposed=transposed,
    )
    assert blocks is not None  # see `why_unsupported`
    columns = kernels.shape[-2 if transposed else -1]
    if transposed:
        kernels = kernels.swapaxes(-1, -2)
    if transposed and not blocks.backwards:
        kernels = reverse_taps(kernels)
        coefficients = jnp.flip(coefficients, 1)
    w, c = group_kernels(kernels, blocks), group_coefficients(coefficients, blocks)
    y, sums = call_kernel(
        inputs, w, c, columns, geometry.out[-1], blocks, precision, scales=scales, beside=beside
    )
    return y.reshape(inputs.shape[0], *geometry.out, columns), sums


def reverse_taps(kernels: Array) -> Array:
    """Returns kernels `[N, *k, I, O]` reversed in space."""
    return jnp.flip(kernels, range(1, kernels.ndim - 2))


def call_kernel(
    inputs, w, c, columns: int, width: int, blocks: Blocks, precision, *, scales=None, beside=None
) -> tuple[Array, Array | None]:
    """Calls the Pallas kernel on a grid of blocks; returns what `run_kernel` does, in two dimensions.

    Args:
        inputs: `[B, *spatial, I]`.
        w: candidates `[K, R, kw, G*I, O]`, or the kernels of all samples, `[B, ...]`.
        c: coefficients `[B, 1, R*kw*G*K]`; None for kernels of single samples.
        columns: number of output features, O.
        width: positions of a row of the outputs.
        blocks: sizes.
        precision: of the products.
        scales, beside: as in `run_kernel`.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, samples, two, packing = inputs.shape[0], blocks.samples, blocks.geometry, blocks.packing
    x = packing.pack(add_row_axis(keep_layout(inputs)))
    packed_columns = packing.number * columns
    padded, total = blocks.scratch()
    # Each core of a chip with two takes one half of the batch.
    steps = batch // samples
    halves = 2 if steps % 2 == 0 else 1

    def block(half, _, step):
        return half * (steps // halves) + step

    def kernels_of(half, o, step):
        first = block(half, o, step) if blocks.per_sample else 0
        return (first, 0, 0, o, 0) if blocks.transposed else (first, 0, 0, 0, o)

    pictures = pl.BlockSpec((samples, *x.shape[1:]), lambda *at: (block(*at), 0, 0, 0))
    kernels = pl.BlockSpec(
        (samples if blocks.per_sample else len(w), *w.shape[1:3], *blocks.matrix),
        kernels_of,
        pipeline_mode=None if blocks.per_sample else pl.Buffered(1),
    )
    results = pl.BlockSpec(
        (samples, *two.out, blocks.columns),
        lambda half, o, step: (block(half, o, step), 0, 0, o),
    )
    of_inputs = pl.BlockSpec((samples, 1, x.shape[-1]), lambda *at: (block(*at), 0, 0))
    of_outputs = pl.BlockSpec(
        (samples, 1, blocks.columns), lambda half, o, step: (block(half, o, step), 0, o)
    )
    # Each array by the name that `_convolve_block` has for it.
    arrays, in_specs = {"x_ref": x, "w_ref": w}, [pictures, kernels]
    outputs, out_specs = (
        {"y_ref": jax.ShapeDtypeStruct((batch, *two.out, packed_columns), x.dtype)},
        [results],
    )
    if c is not None:
        arrays["c_ref"] = c
        in_specs.append(
            pl.BlockSpec(
                (samples, 1, c.shape[-1]), lambda *at: (block(*at), 0, 0), memory_space=pltpu.SMEM
            )
        )
    if scales is not None:
        arrays["channels_ref"], arrays["filters_ref"] = (
            jnp.tile(scale[:, None], packing.number) for scale in scales
        )
        in_specs += [of_inputs, of_outputs]
    if beside is not None:
        arrays["beside_ref"] = packing.pack(add_row_axis(keep_layout(beside)))
        in_specs.append(
            pl.BlockSpec(
                results.block_shape, results.index_map, pipeline_mode=pl.Buffered(blocks.beside)
            )
        )
        outputs["sums_ref"] = jax.ShapeDtypeStruct((batch, 1, packed_columns), jnp.float32)
        out_specs.append(of_outputs)

    def body(*refs):
        _convolve_block(
            **dict(zip((*arrays, *outputs, "padded", "total"), refs, strict=True)),
            blocks=blocks,
            precision=choose_matrix_precision(x.dtype, precision),
        )

    y, *sums = pl.pallas_call(
        body,
        grid=(halves, packed_columns // blocks.columns, steps // halves),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=list(outputs.values()),
        scratch_shapes=[pltpu.VMEM(padded, jnp.float32), pltpu.VMEM(total, jnp.float32)],
        compiler_params=make_parameters("parallel", "arbitrary", "arbitrary"),
        name="sample_conv" if blocks.per_sample else "dynamic_conv",
    )(*arrays.values())
    totals = sums[0].reshape(batch, packing.number, columns).sum(1) if sums else None
    return keep_layout(packing.unpack(y, width)), totals


def add_row_axis(array: Array) -> Array:
    """Returns `[B, H, W, I]` of an array with one or two spatial axes."""
    return array if array.ndim == 4 else array[:, None]


def group_kernels(kernels: Array, blocks: Blocks) -> Array:
    """Returns kernels `[N, R, kw, G*I, O]`, for groups of G taps along the height that share the lanes.

    Missing taps are zero.
    """
    height, width = blocks.geometry.size[0], blocks.packing.width
    grouped, groups = blocks.grouped, blocks.tap_rows
    matrix = kernels.shape[-2:]
    w = kernels.reshape(len(kernels), height, width, *matrix)
    if grouped == 1:
        return w
    w = jnp.pad(w, ((0, 0), (0, groups * grouped - height), (0, 0), (0, 0), (0, 0)))
    w = w.reshape(len(w), groups, grouped, width, *matrix).swapaxes(2, 3)
    return w.reshape(len(w), groups, width, blocks.depth, matrix[1])


def group_coefficients(coefficients: Array, blocks: Blocks) -> Array:
    """Returns coefficients `[B, 1, R*kw*G*K]` in the order of the taps of `group_kernels`."""
    height, width = blocks.geometry.size[0], blocks.packing.width
    grouped, groups = blocks.grouped, blocks.tap_rows
    batch, _, num_kernels = coefficients.shape
    c = coefficients.reshape(batch, height, width, num_kernels)
    c = jnp.pad(c, ((0, 0), (0, groups * grouped - height), (0, 0), (0, 0)))
    c = c.reshape(batch, groups, grouped, width, num_kernels).swapaxes(2, 3)
    return c.reshape(batch, 1, -1)


def _convolve_block(
    *,
    x_ref,
    w_ref,
    y_ref,
    padded,
    total,
    c_ref=None,
    channels_ref=None,
    filters_ref=None,
    beside_ref=None,
    sums_ref=None,
    blocks: Blocks,
    precision,
):
    """Convolves the samples of one grid step.

    Args:
        c_ref: coefficients `[N, 1, R*kw*G*K]`, scalars; None for kernels of single samples.
        x_ref: inputs `[N, H, W, I]`.
        w_ref: candidates `[K, R, kw, G*I, columns]`, or the samples' kernels, `[N, ...]`.
        channels_ref, filters_ref: weights `[N, 1, I]` and `[N, 1, columns]`, or None.
        beside_ref: `[N, H', W', columns]`, or None.
        y_ref: outputs `[N, H', W', columns]`.
        sums_ref: sums over positions of outputs times `beside_ref`, `[N, 1, columns]`, or None.
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
        scale = None if channels_ref is None else channels_ref[n]
        _write_padded(x_ref.at[n], scale, padded.at[n], blocks)
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

    def write_row(h, sums):
        places = [(n, tile, _lanes(tile, blocks.columns)) for n in samples for tile in tiles]
        for index, (n, tile, lanes) in enumerate(places):
            start = h * (blocks.pitch // stride)
            y = total[n, tile, pl.ds(start, width), : lanes.stop - lanes.start]
            if beside_ref is not None:
                product = y * beside_ref[n, h, :, lanes].astype(jnp.float32)
                sums[index] += jnp.sum(product, axis=0, keepdims=True)
            if filters_ref is not None:
                y = y * filters_ref[n, :, lanes]
            y_ref[n, h, :, lanes] = y.astype(y_ref.dtype)
        return sums

    sums = []
    if beside_ref is not None:
        widths = [min(LANES, blocks.columns - tile * LANES) for n in samples for tile in tiles]
        sums = [jnp.zeros((1, width), jnp.float32) for width in widths]
    sums = _repeat(height, write_row, sums)
    if sums_ref is not None:
        tile_sums = iter(sums)
        for n in samples:
            for tile in tiles:
                sums_ref[n, :, _lanes(tile, blocks.columns)] = next(tile_sums)


def _write_padded(x_ref, scale, padded, blocks: Blocks):
    """Writes a weighted sample into VMEM with its padding; taps that share the lanes follow each other."""
    from jax.experimental import pallas as pl

    geometry, features = blocks.geometry, blocks.features
    (height, width), phases = geometry.spatial, geometry.strides[0]
    (top, _), (left, _) = geometry.padding
    above = blocks.grouped - 1  # the first taps of a group lie so many rows before the last

    def write_row(h, carry):
        x = x_ref[h].astype(jnp.float32)
        if scale is not None:
            x = x * scale
        for g in range(blocks.grouped):
            row = h * geometry.input_dilation[0] + top + above - g
            start = row // phases * blocks.pitch + left
            to = pl.ds(start, width, stride=geometry.input_dilation[1])
            if blocks.packing.offset:
                for lanes, new_lanes, ahead in blocks.packing.list_lanes(features):
                    padded[row % phases, 0, pl.ds(start + ahead, width), new_lanes] = x[:, lanes]
                continue
            for tile in range(-(-features // LANES)):
                part = x[:, _lanes(tile, features)]
                lanes = slice(g * features, g * features + part.shape[1])
                padded[row % phases, tile, to, lanes] = part
        return carry

    _repeat(height, write_row, 0)


def _repeat(number: int, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """Repeats a step, several times per turn of a loop so that the latencies of their loads overlap."""
    return lax.fori_loop(0, number, step, carry, unroll=math.gcd(number, 8))


def _lanes(tile: int, features: int) -> slice:
    """Returns the features that lie in one tile of lanes."""
    return slice(tile * LANES, min((tile + 1) * LANES, features))


def _multiply_tap_row(c_ref, padded, w_ref, n, i, blocks: Blocks, dtype, precision) -> Any:
    """Returns the sum over the i-th group of rows of taps, `[rows, columns]` in float32."""
    from jax.experimental import pallas as pl

    width, packing = blocks.geometry.size[1], blocks.packing
    phases, stride = blocks.geometry.strides
    scales_inputs = w_ref.shape[0] == 1 and blocks.scales_inputs
    contracted = 1 if blocks.transposed else 0
    row = i * blocks.grouped + blocks.grouped - 1
    result = jnp.zeros((blocks.rows, blocks.columns), jnp.float32)
    tap_row = blocks.tap_rows - 1 - i if blocks.backwards else i
    columns = range(packing.width)[:: -1 if blocks.backwards else 1]

    @cache
    def get_tap(column):
        place = (tap_row, columns[column])
        if blocks.per_sample or scales_inputs:
            return w_ref[(n if blocks.per_sample else 0, *place)]
        return _mix_group(w_ref, c_ref, n, *place, blocks)

    for j in range(width):
        w = packing.assemble(get_tap, j)
        start = row // phases * blocks.pitch + j
        for tile in range(blocks.lane_tiles):
            depth = min(LANES, blocks.depth - tile * LANES)
            x = padded[n, row % phases, tile, pl.ds(start, blocks.rows, stride=stride)]
            if scales_inputs:
                x = x * c_ref[n, 0, tap_row * width + columns[j]]
            part = lax.slice_in_dim(w, tile * LANES, tile * LANES + depth, axis=contracted)
            result += lax.dot_general(
                x[:, :depth].astype(dtype),
                part.astype(dtype),
                (((1,), (contracted,)), ((), ())),
                precision=precision,
                preferred_element_type=jnp.float32,
            )
    return result


def _mix_group(w_ref, c_ref, n, i, j: int, blocks: Blocks) -> Array:
    """Returns sum_k c[n, tap, k] W_k of the taps that share the lanes, `[G*I, columns]` in float32."""
    from jax.experimental import pallas as pl

    num_kernels, height = w_ref.shape[0], blocks.matrix[0] // blocks.grouped
    mixtures = []
    for g in range(blocks.grouped):
        rows = pl.ds(g * height, height)
        tap = (i * blocks.packing.width + j) * blocks.grouped + g
        mixed = w_ref[0, i, j, rows].astype(jnp.float32) * c_ref[n, 0, tap * num_kernels]
        for k in range(1, num_kernels):
            w = w_ref[k, i, j, rows].astype(jnp.float32)
            mixed += w * c_ref[n, 0, tap * num_kernels + k]
        mixtures.append(mixed)
    return jnp.concatenate(mixtures)
