"""A convolution with a mixture of kernels at each position in three kernels for TPUs, written in Pallas.

    y[b, p] = sum_k m[b, p, k] z[b, p, k]      z[b, p, k] = sum_t x[b, p + t] W_k[t]

The K candidates lie side by side in the lanes, so that one product computes all of z for a few hundred
positions, and the vector unit weighs and adds them up: neither patches nor z are written to memory.

    dx[b, p + t] = sum_t sum_k m[b, p, k] s[b, p, k, t]      s[b, p, k, t] = W_k[t] dy[b, p]
    dm[b, p, k] = sum_t <x[b, p + t], s[b, p, k, t]>
    dW_k[t] = sum_b sum_p x[b, p + t] (m[b, p, k] dy[b, p])^T

The products s serve both dx, added up where the forward pass reads, and dm, which thus needs no z. A
training step has 3 K products of the size of a static layer's. Pictures are padded in VMEM as in
`dyn.ops.fused_tpu`; letters are those of `geometry`.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dyn.ops.fused_tpu import (
    Blocks,
    choose_matrix_precision,
    group_kernels,
    repeat_step,
    slice_lanes,
    write_padded,
)
from dyn.ops.geometry import Array, Geometry, Problem, add_height
from dyn.ops.vmem import LANES, count_vmem_bytes, find_vmem_size, round_up

# Rows of a product. With more, a matrix unit would reuse its weights more often, but sums take more memory.
CHUNK_ROWS = 512
# Narrower candidates are filled up, so that at most as many share the lanes as registers have rows.
NARROWEST = 16


@dataclasses.dataclass(frozen=True)
class PixelBlocks(Blocks):
    """Sizes of the blocks of one of the three kernels.

    Attributes:
        num_kernels: number of candidates, K.
        beside: features of a candidate that the others' lie beside: `columns`, or `features` in the
            gradient for the inputs.
    """

    num_kernels: int
    beside: int

    @property
    def width(self) -> int:
        """Lanes of a candidate: a part of a tile, or whole tiles."""
        if self.beside >= LANES:
            return round_up(self.beside, LANES)
        return max(NARROWEST, 2 ** (self.beside - 1).bit_length())

    @property
    def sharing(self) -> int:
        """Number of candidates that share a tile of lanes."""
        return max(1, LANES // self.width)

    @property
    def tiles(self) -> int:
        """Tiles of lanes of one candidate, or of those that share a tile."""
        return max(1, self.width // LANES)

    @property
    def sets(self) -> int:
        """Number of candidates, or of sets of them that share a tile."""
        return -(-self.num_kernels // self.sharing)

    @property
    def chunks(self) -> int:
        """Number of pieces that the positions of a picture are cut into."""
        return -(-self.rows // CHUNK_ROWS)

    @property
    def chunk(self) -> int:
        """Positions of such a piece, whole tiles of 16-bit numbers."""
        return round_up(-(-self.rows // self.chunks), 16)

    @property
    def line(self) -> int:
        """Positions from a row of outputs to the next."""
        return self.pitch // self.geometry.strides[1]

    @property
    def mixture(self) -> tuple[int, int, int]:
        """Shape of a sample's mixture: pieces, candidates, positions."""
        return self.chunks, round_up(self.num_kernels, 8), round_up(self.chunk, LANES)

    @property
    def padded(self) -> tuple[int, ...]:
        """Shape of the padded pictures."""
        (down, right), columns = self.geometry.strides, self.geometry.size[1]
        last = (self.tap_rows * self.grouped - 1) // down * self.pitch + columns - 1
        read = last + (self.chunks * self.chunk - 1) * right + 1
        length = round_up(max(self.height * self.pitch, read), 8)
        return self.samples, down, self.lane_tiles, length, LANES

    @property
    def flat(self) -> tuple[int, ...]:
        """Shape of the outputs, or their gradient, with the positions in rows."""
        tiles = -(-self.columns // LANES)
        return self.samples, tiles, self.chunks * self.chunk, LANES

    @property
    def products(self) -> tuple[int, ...]:
        """Shape of the results of a product for a piece of each picture."""
        return self.sets * self.tiles, self.samples * self.chunk, LANES

    def fits_vmem(self, kernels: Sequence[int], itemsize: int, *, gradient: str = "") -> bool:
        """Returns whether there is room in VMEM.

        Args:
            kernels: shape of the block of candidates, or of their gradient.
            itemsize: bytes of a number of the inputs.
            gradient: 'inputs', 'kernels', or '' for the forward pass.
        """
        inputs = (self.samples, *self.geometry.spatial, self.features)
        outputs = (self.samples, *self.geometry.out, self.columns)
        mixture = (self.samples, *self.mixture)
        # Blocks are there twice, the next one beside this one; so is a product, for its registers do not
        # suffice.
        arrays = [
            (2, inputs, itemsize),
            (2, outputs, itemsize),
            (2, mixture, 4),
            (1, self.padded, 4),
            (1, self.flat, 4),
            (2, self.products, 4),
        ]
        if gradient == "":
            arrays += [(1, kernels, itemsize)]
        elif gradient == "inputs":
            # The gradient and its padded form, the weights in all lanes, and the sums for the mixture.
            weights = (self.sets, *self.products[1:])
            arrays += [(1, kernels, itemsize), (2, inputs, itemsize), (1, self.padded, 4)]
            arrays += [(1, weights, 4), (1, weights, 4), (2, mixture, 4)]
        else:
            arrays += [(2, kernels, 4)]
        total = sum(n * count_vmem_bytes(shape, size) for n, shape, size in arrays)
        return total < 0.9 * find_vmem_size()


def choose_blocks(
    geometry: Geometry, batch: int, kernels: Sequence[int], itemsize: int, gradient: str = ""
) -> PixelBlocks | None:
    """Chooses the blocks of one of the kernels, see `PixelBlocks.fits_vmem`; None if there is no room."""
    geometry = add_height(geometry)
    num_kernels, (features, columns) = kernels[0], kernels[-2:]
    if gradient != "":
        features = _cut(features)
    if gradient != "inputs":
        columns = _cut(columns)
    grouped = 1 if gradient == "inputs" else min(geometry.size[0], max(1, LANES // features))
    beside = features if gradient == "inputs" else columns
    blocks = PixelBlocks(geometry, 1, grouped, features, columns, num_kernels, beside)
    most = max(1, CHUNK_ROWS // blocks.chunk) if blocks.chunks == 1 else 1
    lanes = blocks.sets * blocks.tiles * LANES
    rows, depth = blocks.tap_rows, blocks.depth
    for samples in (n for n in range(most, 0, -1) if batch % n == 0):
        blocks = dataclasses.replace(blocks, samples=samples)
        match gradient:
            case "":
                block = (rows, geometry.size[1], depth, lanes)
            case "inputs":
                block = (rows, geometry.size[1], columns, lanes)
            case _:
                block = (rows, geometry.size[1], lanes, depth)
        if blocks.fits_vmem(block, itemsize, gradient=gradient):
            return blocks
    return None


def _cut(features: int) -> int:
    """Returns the features of a block: one tile of lanes if they are whole tiles, else all."""
    return LANES if features % LANES == 0 else features


def why_unsupported(problem: Problem) -> str | None:
    """Explains why the kernels cannot solve a pixel-wise problem that `fused_tpu` could; None if they can."""
    if problem.tap_attention:
        return "the kernel for pixel-wise mixtures knows no tap attention"
    for gradient in ("", "inputs", "kernels"):
        if not choose_blocks(
            problem.geometry, problem.batch, problem.kernels, problem.itemsize, gradient
        ):
            return "a picture and its kernels do not fit into VMEM"
    return None


def convolve_pixels(inputs, kernels, mix, geometry: Geometry, precision) -> Array:
    """Convolves with a mixture at each position in one Pallas kernel: see `dyn.ops.fused_pixels_tpu`.

    Args:
        inputs: `[B, *spatial, I]` in float32 or bfloat16.
        kernels: `[K, *k, I, O]`.
        mix: `[B, *out, K]`.
        geometry: geometry for which `why_unsupported` knows no reason.
        precision: of the products of float32 arrays.
    """
    return _convolve(inputs, kernels, mix.astype(jnp.float32), geometry, precision)


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
    batch, columns = inputs.shape[0], kernels.shape[-1]
    blocks = choose_blocks(geometry, batch, kernels.shape, inputs.dtype.itemsize)
    assert blocks is not None  # see `why_unsupported`
    samples, two = blocks.samples, blocks.geometry
    w = _lay_beside(group_kernels(kernels, blocks).astype(inputs.dtype), blocks)
    lanes = w.shape[-1] // (columns // blocks.columns)
    grid, block = _divide_batch(batch, samples, columns // blocks.columns)
    y = pl.pallas_call(
        partial(
            _convolve_block,
            blocks=blocks,
            precision=choose_matrix_precision(inputs.dtype, precision),
        ),
        grid=grid,
        in_specs=[
            pl.BlockSpec((samples, *blocks.mixture), lambda *at: (block(*at), 0, 0, 0)),
            pl.BlockSpec(
                (samples, *two.spatial, blocks.features), lambda *at: (block(*at), 0, 0, 0)
            ),
            pl.BlockSpec(
                (*w.shape[:-1], lanes),
                lambda half, o, step: (0, 0, 0, o),
                pipeline_mode=pl.Buffered(1),
            ),
        ],
        out_specs=pl.BlockSpec(
            (samples, *two.out, blocks.columns),
            lambda half, o, step: (block(half, o, step), 0, 0, o),
        ),
        out_shape=jax.ShapeDtypeStruct((batch, *two.out, columns), inputs.dtype),
        scratch_shapes=_list_scratch(blocks.padded, blocks.products, blocks.flat),
        compiler_params=_make_parameters("parallel", "arbitrary", "arbitrary"),
        name="pixel_conv",
    )(_arrange_mixture(mix, blocks), inputs.reshape(batch, *two.spatial, -1), w)
    return y.reshape(batch, *geometry.out, columns)


def run_input_gradient(inputs, kernels, mix, dy, geometry: Geometry, precision):
    """Runs the kernel of the gradients for the inputs and for the mixture, `[B, *out, K]`."""
    batch, features = inputs.shape[0], inputs.shape[-1]
    blocks = choose_blocks(geometry, batch, kernels.shape, inputs.dtype.itemsize, "inputs")
    assert blocks is not None  # see `why_unsupported`
    samples, two = blocks.samples, blocks.geometry
    w = kernels.swapaxes(-1, -2).astype(inputs.dtype)
    w = _lay_beside(w.reshape(w.shape[0], *two.size, *w.shape[-2:]), blocks)
    parts = features // blocks.features
    grid, block = _divide_batch(batch, samples, parts)

    def index(half, i, step):
        return block(half, i, step), 0, 0, 0

    x_spec = pl.BlockSpec(
        (samples, *two.spatial, blocks.features),
        lambda half, i, step: (block(half, i, step), 0, 0, i),
    )
    dx, d_mix = pl.pallas_call(
        partial(
            _differentiate_inputs_block,
            blocks=blocks,
            precision=choose_matrix_precision(inputs.dtype, precision),
        ),
        grid=grid,
        in_specs=[
            pl.BlockSpec((samples, *blocks.mixture), index),
            pl.BlockSpec((samples, *two.out, blocks.columns), index),
            x_spec,
            pl.BlockSpec(
                (*w.shape[:-1], w.shape[-1] // parts),
                lambda half, i, step: (0, 0, 0, i),
                pipeline_mode=pl.Buffered(1),
            ),
        ],
        out_specs=[
            x_spec,
            pl.BlockSpec(
                (1, samples, *blocks.mixture),
                lambda half, i, step: (i, block(half, i, step), 0, 0, 0),
            ),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((batch, *two.spatial, features), inputs.dtype),
            jax.ShapeDtypeStruct((parts, batch, *blocks.mixture), jnp.float32),
        ],
        scratch_shapes=_list_scratch(
            blocks.padded,
            blocks.padded,
            blocks.flat,
            (blocks.sets, *blocks.products[1:]),
            (blocks.sets, *blocks.products[1:]),
        ),
        compiler_params=_make_parameters("parallel", "arbitrary", "arbitrary"),
        name="pixel_conv_input_gradient",
    )(
        _arrange_mixture(mix, blocks),
        dy.reshape(batch, *two.out, -1),
        inputs.reshape(batch, *two.spatial, -1),
        w,
    )
    d_mix = _restore_mixture(d_mix.sum(0), blocks).reshape(mix.shape)
    return dx.reshape(inputs.shape), d_mix


def run_kernel_gradient(inputs, kernels, mix, dy, geometry: Geometry, precision) -> Array:
    """Runs the kernel of the gradient for the candidates, `[K, *k, I, O]` in float32."""
    batch, num_kernels = inputs.shape[0], kernels.shape[0]
    blocks = choose_blocks(geometry, batch, kernels.shape, inputs.dtype.itemsize, "kernels")
    assert blocks is not None  # see `why_unsupported`
    samples, two = blocks.samples, blocks.geometry
    features, columns = kernels.shape[-2] // blocks.features, kernels.shape[-1] // blocks.columns
    lanes = blocks.sets * blocks.tiles * LANES
    size = (blocks.tap_rows, two.size[1])
    dw = pl.pallas_call(
        partial(
            _differentiate_kernels_block,
            blocks=blocks,
            precision=choose_matrix_precision(inputs.dtype, precision),
        ),
        grid=(features, columns, batch // samples),
        in_specs=[
            pl.BlockSpec((samples, *blocks.mixture), lambda i, o, step: (step, 0, 0, 0)),
            pl.BlockSpec(
                (samples, *two.out, blocks.columns), lambda i, o, step: (step, 0, 0, o)
            ),
            pl.BlockSpec(
                (samples, *two.spatial, blocks.features), lambda i, o, step: (step, 0, 0, i)
            ),
        ],
        out_specs=pl.BlockSpec((*size, lanes, blocks.depth), lambda i, o, step: (0, 0, o, i)),
        out_shape=jax.ShapeDtypeStruct(
            (*size, columns * lanes, features * blocks.depth), jnp.float32
        ),
        scratch_shapes=[
            *_list_scratch(blocks.padded, blocks.flat),
            pltpu.VMEM((lanes, blocks.products[1]), inputs.dtype),
        ],
        compiler_params=_make_parameters("parallel", "parallel", "arbitrary"),
        name="pixel_conv_kernel_gradient",
    )(
        _arrange_mixture(mix, blocks),
        dy.reshape(batch, *two.out, -1),
        inputs.reshape(batch, *two.spatial, -1),
    )
    # The candidates' lanes became rows; taps of a group and the features are in the lanes.
    dw = dw.reshape(*size, columns, lanes // blocks.width, blocks.width, -1)
    dw = dw[:, :, :, :num_kernels, : blocks.columns]
    dw = dw.reshape(*dw.shape[:-1], blocks.grouped, kernels.shape[-2])
    dw = dw.transpose(3, 0, 5, 1, 6, 2, 4)  # [K, R, G, kw, I, blocks of O, O of a block]
    dw = dw.reshape(num_kernels, blocks.tap_rows * blocks.grouped, *dw.shape[3:5], -1)
    return dw[:, : two.size[0]].reshape(kernels.shape)


def _divide_batch(batch: int, samples: int, parts: int):
    """Returns a grid (halves of the batch, parts, steps) and the block of samples at a place of it.

    Each core of a chip with two takes one half of the batch.
    """
    steps = batch // samples
    halves = 2 if steps % 2 == 0 else 1
    return (halves, parts, steps // halves), lambda half, _, step: half * (steps // halves) + step


def _make_parameters(*semantics: str) -> pltpu.CompilerParams:
    """Returns the compiler's parameters for the axes of a grid."""
    return pltpu.CompilerParams(
        dimension_semantics=semantics, vmem_limit_bytes=int(0.95 * find_vmem_size())
    )


def _list_scratch(*shapes: tuple[int, ...]) -> list[Any]:
    """Returns memory for arrays of these shapes in float32."""
    return [pltpu.VMEM(shape, jnp.float32) for shape in shapes]


def _lay_beside(kernels: Array, blocks: PixelBlocks) -> Array:
    """Lays candidates `[K, ..., C]` beside each other, for each block of C: `[..., blocks * lanes]`."""
    num_kernels, *rest, features = kernels.shape
    w = kernels.reshape(num_kernels, *rest, features // blocks.beside, blocks.beside)
    missing = blocks.sets * blocks.sharing - num_kernels
    ends = [(0, missing), *((0, 0) for _ in rest), (0, 0), (0, blocks.width - blocks.beside)]
    return jnp.moveaxis(jnp.pad(w, ends), 0, -2).reshape(*rest, -1)


def _arrange_mixture(mix: Array, blocks: PixelBlocks) -> Array:
    """Brings a mixture `[B, *out, K]` to the rows of a product: `[B, *blocks.mixture]`.

    Positions between two rows of outputs get the weight zero.
    """
    (height, width), batch = blocks.geometry.out, mix.shape[0]
    m = jnp.moveaxis(mix.reshape(batch, height, width, -1), -1, 1)
    m = jnp.pad(m, ((0, 0), (0, 0), (0, 0), (0, blocks.line - width)))
    m = m.reshape(batch, blocks.num_kernels, -1)
    positions, (chunks, kernels, lanes) = blocks.chunks * blocks.chunk, blocks.mixture
    m = jnp.pad(m, ((0, 0), (0, 0), (0, max(0, positions - m.shape[-1]))))[..., :positions]
    m = m.reshape(*m.shape[:2], chunks, blocks.chunk).swapaxes(1, 2)
    ends = ((0, 0), (0, 0), (0, kernels - m.shape[2]), (0, lanes - blocks.chunk))
    return jnp.pad(m, ends)


def _restore_mixture(m: Array, blocks: PixelBlocks) -> Array:
    """Inverts `_arrange_mixture`: `[B, *blocks.mixture]` to `[B, height, width, K]`."""
    height, width = blocks.geometry.out
    m = m[:, :, : blocks.num_kernels, : blocks.chunk].swapaxes(1, 2)
    m = m.reshape(*m.shape[:2], -1)
    length = height * blocks.line
    m = jnp.pad(m, ((0, 0), (0, 0), (0, max(0, length - m.shape[-1]))))[..., :length]
    return jnp.moveaxis(m.reshape(*m.shape[:2], height, blocks.line)[..., :width], 1, -1)


def _convolve_block(
    m_ref,  # [N, pieces, K, positions]
    x_ref,  # [N, H, W, I]
    w_ref,  # [R, kw, G*I, lanes]
    y_ref,  # [N, H', W', columns]
    padded,
    products,  # of a piece, in float32
    flat,  # y with the positions in rows
    *,
    blocks: PixelBlocks,
    precision,
):
    """Convolves the samples of one grid step."""

    @pl.when(pl.program_id(2) == 0)
    def _():  # the padding stays zero afterwards
        padded[...] = jnp.zeros_like(padded)

    for n in range(blocks.samples):
        write_padded(x_ref.at[n], padded.at[n], blocks)

    def compute_piece(piece, carry):
        products[...] = jnp.zeros_like(products)

        def add_tap_row(i, carry):
            result = 0
            for j in range(blocks.geometry.size[1]):
                for tile in range(blocks.lane_tiles):
                    lanes = slice_lanes(tile, blocks.depth)
                    x = _read_shifted(padded, i, j, tile, piece, blocks)
                    result += jnp.dot(
                        x[:, : lanes.stop - lanes.start].astype(x_ref.dtype),
                        w_ref[i, j, lanes],
                        precision=precision,
                        preferred_element_type=jnp.float32,
                    )
            for tile in range(products.shape[0]):
                products[tile] += result[:, tile * LANES : (tile + 1) * LANES]
            return carry

        lax.fori_loop(0, blocks.tap_rows, add_tap_row, 0)
        for n in range(blocks.samples):
            weights = _spread_weights(m_ref[n, piece], blocks)
            rows = slice(n * blocks.chunk, (n + 1) * blocks.chunk)
            to = pl.ds(pl.multiple_of(piece * blocks.chunk, 16), blocks.chunk)
            for u in range(blocks.tiles):
                parts = [w * products[s * blocks.tiles + u, rows] for s, w in enumerate(weights)]
                flat[n, u, to] = _add_shared(sum(parts), blocks)
        return carry

    lax.fori_loop(0, blocks.chunks, compute_piece, 0)
    (height, width), columns = blocks.geometry.out, blocks.columns

    def write_row(h, carry):
        for n in range(blocks.samples):
            for tile in range(flat.shape[1]):
                lanes = slice_lanes(tile, columns)
                y = flat[n, tile, pl.ds(h * blocks.line, width), : lanes.stop - lanes.start]
                y_ref[n, h, :, lanes] = y.astype(y_ref.dtype)
        return carry

    repeat_step(height, write_row)


def _differentiate_inputs_block(
    m_ref,  # [N, pieces, K, positions]
    dy_ref,  # [N, H', W', O]
    x_ref,  # [N, H, W, features]
    w_ref,  # [kh, kw, O, lanes]
    dx_ref,  # like x_ref
    dm_ref,  # like m_ref, with another axis in front
    padded,
    d_padded,
    flat,  # dy with the positions in rows
    weights,  # the mixture of a piece in all lanes of each candidate
    sums,  # dm before the sum over lanes
    *,
    blocks: PixelBlocks,
    precision,
):
    """Computes dx and dm of the samples of one grid step, for one block of input features."""
    chunk, geometry = blocks.chunk, blocks.geometry

    @pl.when(pl.program_id(2) == 0)
    def _():  # the padding stays zero afterwards
        padded[...] = jnp.zeros_like(padded)
        flat[...] = jnp.zeros_like(flat)

    d_padded[...] = jnp.zeros_like(d_padded)
    for n in range(blocks.samples):
        write_padded(x_ref.at[n], padded.at[n], blocks)
        _write_flat(dy_ref.at[n], flat.at[n], blocks)
    if blocks.sharing > 1:  # each candidate of a tile meets the inputs
        for n in range(blocks.samples):
            for phase in range(padded.shape[1]):
                padded[n, phase, 0] = _repeat_features(padded[n, phase, 0], blocks.features, blocks)

    def compute_piece(piece, carry):
        for n in range(blocks.samples):
            spread = _spread_weights(m_ref[n, piece], blocks)
            for s in range(blocks.sets):
                weights[s, n * chunk : (n + 1) * chunk] = spread[s]
        sums[...] = jnp.zeros_like(sums)
        dy = _read_flat(flat, piece, blocks).astype(dy_ref.dtype)

        def add_tap_row(i, carry):
            for j in range(geometry.size[1]):
                product = jnp.dot(
                    dy, w_ref[i, j], precision=precision, preferred_element_type=jnp.float32
                )
                for u in range(blocks.tiles):
                    x = _read_shifted(padded, i, j, u, piece, blocks)
                    total = jnp.zeros_like(x)
                    for s in range(blocks.sets):
                        first = (s * blocks.tiles + u) * LANES
                        part = product[:, first : first + LANES]
                        total += weights[s] * part
                        sums[s] += x * part
                    for n in range(blocks.samples):
                        place = _find_shifted(i, j, piece, blocks)
                        d_padded[n, place[0], u, place[1]] += total[n * chunk : (n + 1) * chunk]
            return carry

        lax.fori_loop(0, blocks.tap_rows, add_tap_row, 0)
        for n in range(blocks.samples):
            dm_ref[0, n, piece] = _sum_lanes(sums, n, blocks)
        return carry

    lax.fori_loop(0, blocks.chunks, compute_piece, 0)
    (height, width), (top, _), (left, _) = geometry.spatial, *geometry.padding

    def write_row(h, carry):
        phase, line = (h + top) % geometry.strides[0], (h + top) // geometry.strides[0]
        for n in range(blocks.samples):
            for tile in range(blocks.lane_tiles):
                lanes = slice_lanes(tile, blocks.features)
                dx = d_padded[n, phase, tile, pl.ds(line * blocks.pitch + left, width)]
                dx = _add_shared(dx, blocks)[:, : lanes.stop - lanes.start]
                dx_ref[n, h, :, lanes] = dx.astype(dx_ref.dtype)
        return carry

    repeat_step(height, write_row)


def _differentiate_kernels_block(
    m_ref,  # [N, pieces, K, positions]
    dy_ref,  # [N, H', W', columns]
    x_ref,  # [N, H, W, features]
    dw_ref,  # [R, kw, lanes, G*I]; it stays in VMEM until all samples have passed
    padded,
    flat,  # dy with the positions in rows
    weighted,  # m dy of all candidates, transposed
    *,
    blocks: PixelBlocks,
    precision,
):
    """Adds several samples' share to the gradient for the candidates."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        dw_ref[...] = jnp.zeros_like(dw_ref)
        padded[...] = jnp.zeros_like(padded)
        flat[...] = jnp.zeros_like(flat)

    for n in range(blocks.samples):
        write_padded(x_ref.at[n], padded.at[n], blocks)
        _write_flat(dy_ref.at[n], flat.at[n], blocks)

    def add_piece(piece, carry):
        spread = [_spread_weights(m_ref[n, piece], blocks) for n in range(blocks.samples)]
        rows = pl.ds(pl.multiple_of(piece * blocks.chunk, 16), blocks.chunk)
        for u in range(blocks.tiles):
            dy = [
                _repeat_features(flat[n, u, rows], blocks.columns, blocks)
                for n in range(blocks.samples)
            ]
            for s in range(blocks.sets):
                scaled = [spread[n][s] * dy[n] for n in range(blocks.samples)]
                first = (s * blocks.tiles + u) * LANES
                turned = jnp.concatenate(scaled).T
                weighted[first : first + LANES] = turned.astype(weighted.dtype)

        def add_tap_row(i, carry):
            for j in range(blocks.geometry.size[1]):
                for tile in range(blocks.lane_tiles):
                    lanes = slice_lanes(tile, blocks.depth)
                    x = _read_shifted(padded, i, j, tile, piece, blocks)
                    dw_ref[i, j, :, lanes] += jnp.dot(
                        weighted[...],
                        x[:, : lanes.stop - lanes.start].astype(x_ref.dtype),
                        precision=precision,
                        preferred_element_type=jnp.float32,
                    )
            return carry

        lax.fori_loop(0, blocks.tap_rows, add_tap_row, 0)
        return carry

    lax.fori_loop(0, blocks.chunks, add_piece, 0)


def _find_shifted(i, j, piece, blocks: PixelBlocks) -> tuple[Any, Any]:
    """Returns the phase and the rows of padded pictures that a group of taps meets for a piece."""
    down, right = blocks.geometry.strides
    row = i * blocks.grouped + blocks.grouped - 1
    start = row // down * blocks.pitch + j + piece * (blocks.chunk * right)
    return row % down, pl.ds(start, blocks.chunk, stride=right)


def _read_shifted(padded, i, j, tile, piece, blocks: PixelBlocks) -> Array:
    """Returns one tile of the inputs that a group of taps meets, `[N * chunk, 128]`."""
    phase, rows = _find_shifted(i, j, piece, blocks)
    return jnp.concatenate([padded[n, phase, tile, rows] for n in range(blocks.samples)])


def _write_flat(y_ref, flat, blocks: PixelBlocks):
    """Writes outputs `[H', W', O]` with the positions in rows; those between two lines stay as they are."""
    height, width = blocks.geometry.out

    def write_row(h, carry):
        y = y_ref[h].astype(jnp.float32)
        for tile in range(flat.shape[0]):
            part = y[:, slice_lanes(tile, blocks.columns)]
            flat[tile, pl.ds(h * blocks.line, width), : part.shape[1]] = part
        return carry

    repeat_step(height, write_row)


def _read_flat(flat, piece, blocks: PixelBlocks) -> Array:
    """Returns a piece of all samples' outputs, `[N * chunk, O]`."""
    rows = pl.ds(pl.multiple_of(piece * blocks.chunk, 16), blocks.chunk)
    samples = [
        jnp.concatenate([flat[n, tile, rows] for tile in range(flat.shape[1])], axis=-1)
        for n in range(blocks.samples)
    ]
    return jnp.concatenate(samples)[:, : blocks.columns]


def _spread_weights(m: Array, blocks: PixelBlocks) -> list[Array]:
    """Returns each candidate's weights in all of its lanes: sets times `[chunk, 128]`."""
    m = m.T[: blocks.chunk]
    lane = lax.broadcasted_iota(jnp.int32, (blocks.chunk, LANES), 1)
    spread = []
    for s in range(blocks.sets):
        first = s * blocks.sharing
        weights = jnp.broadcast_to(m[:, first : first + 1], lane.shape)
        for n in range(1, blocks.sharing):
            weights = jnp.where(lane < n * blocks.width, weights, m[:, first + n : first + n + 1])
        spread.append(weights)
    return spread


def _add_shared(x: Array, blocks: PixelBlocks) -> Array:
    """Adds up the candidates that share a tile of lanes; each part of the lanes has the sum."""
    for n in range(int(math.log2(blocks.sharing))):
        x = x + pltpu.roll(x, LANES >> (n + 1), 1)
    return x


def _repeat_features(x: Array, features: int, blocks: PixelBlocks) -> Array:
    """Repeats features for each candidate that shares the tile of lanes; lanes beyond them are zero."""
    if blocks.sharing == 1:
        return x
    lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return _add_shared(jnp.where(lane < features, x, 0.0), blocks)


def _sum_lanes(sums, n: int, blocks: PixelBlocks) -> Array:
    """Returns the sums over each candidate's lanes for one sample, `[K, positions]`."""
    _, kernels, positions = blocks.mixture
    lane = lax.broadcasted_iota(jnp.int32, (blocks.chunk, LANES), 1)
    result = jnp.zeros(lane.shape, jnp.float32)
    for k in range(blocks.num_kernels):
        s, part = divmod(k, blocks.sharing)
        x = sums[s, n * blocks.chunk : (n + 1) * blocks.chunk]
        if blocks.sharing > 1:
            x = jnp.where(lane // blocks.width == part, x, 0.0)
        result = jnp.where(lane == k, jnp.sum(x, axis=-1, keepdims=True), result)
    result = jnp.pad(result, ((0, positions - blocks.chunk), (0, 0)))
    return result.T[:kernels]
