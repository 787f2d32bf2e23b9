"""The gradient of the fused dynamic convolution for its kernels and weights, as a Pallas kernel for TPUs.

For y_b = f_b sum_t shift_t(a_b x_b) @ (sum_k c[b,t,k] W_k[t]), with G_b[t] = shift_t(a_b x_b)^T dy_b and
R[b,t,k] = sum_i G_b[t,i] W_k[t,i]:

    dW_k[t] = sum_b c[b,t,k] f_b G_b[t]        dc[b,t,k] = <f_b, R[b,t,k]>
    df_b = sum_tk c[b,t,k] R[b,t,k]

Letters as in `geometry`: B samples, T taps, K candidate kernels, I and O features.

G goes through the matrix unit once, whatever K is, and never leaves VMEM; both sums over it are work of
the vector unit, 4 K operations a number. The alternative for dW, products of inputs that are scaled by c,
takes K products; the one for dc, K products of the forward pass. A v5e has four multiply-adds of the
matrix unit's rows to one of the vector unit's, so both cost more than they save unless I and O are much
larger than the picture, and then the gain is 20 %. K = 1 is the same kernel: 1/K of the vector work.
Where positions are packed (`dyn.ops.packing`), so many taps of G, W and dW lie beside each other as well.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dyn.ops.dtypes import choose_matrix_precision
from dyn.ops.geometry import Array, Geometry, add_height
from dyn.ops.packing import Packing, plan_packing
from dyn.ops.vmem import (
    LANES,
    SUBLANES,
    count_vmem_bytes,
    fill_axis,
    find_vmem_size,
    keep_layout,
    make_parameters,
    round_up,
)

# The rest of VMEM is the compiler's, for spills.
BLOCKS_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the pieces that one step of the grid works on.

    Attributes:
        samples: number of samples; each accumulator is loaded and stored once for all of them.
        rows: number of rows of the kernel, all or one.
        inputs, outputs: number of input and output features.
    """

    samples: int
    rows: int
    inputs: int
    outputs: int


def compute_kernel_gradients(
    x: Array,
    dy: Array,
    kernels: Array,
    coefficients: Array,
    scales: tuple[Array, Array] | None,
    geometry: Geometry,
    *,
    precision: lax.PrecisionLike = None,
) -> tuple[Array, Array, Array | None]:
    """Returns the gradients of the fused convolution for its kernels, their weights and the outputs'.

    Args:
        x: inputs `[B, *spatial, I]` with one or two spatial axes.
        dy: gradient of the outputs, `[B, *out, O]`.
        kernels: candidates `[K, *k, I, O]`.
        coefficients: weight of each candidate at each tap, `[B, T, K]` in float32.
        scales: weights `[B, I]` of the inputs and `[B, O]` of the outputs in float32, or None.
        geometry: strides, dilation of the kernel and paddings with zeros.
        precision: of the products of float32 arrays, as in `jax.lax.dot`.

    Returns:
        `[K, *k, I, O]`, `[B, T, K]`, and `[B, O]` or None without scales, all in float32.

    Raises:
        ValueError: if `fits_vmem` says no.
    """
    shape, batch = kernels.shape, x.shape[0]
    blocks = choose_blocks(geometry, shape, batch, x.dtype.itemsize)
    if blocks is None:
        raise ValueError(f"kernels {shape} and inputs {x.shape} do not fit into a TPU's VMEM.")
    geometry = add_height(geometry)
    packing = _plan_packing(geometry, *shape[-2:])
    x, dy = _arrange(x, dy, geometry, packing)
    kernels = _fill_features(kernels.reshape(shape[0], *geometry.size, *shape[-2:]), -2)
    if scales is not None:
        scales = (_fill_features(scales[0], -1), scales[1])
    d_kernels, d_coefficients, d_filters = _call_kernel(
        x, dy, kernels, coefficients, scales, packing, blocks, precision
    )
    d_kernels = d_kernels[..., : shape[-2], :].reshape(shape)
    return d_kernels, d_coefficients, d_filters


def _fold(array: Array, axis: int, folded: int) -> Array:
    """Splits the axis of a row's taps into groups that share the lanes, `(groups, folded)`, with zeros."""
    array = fill_axis(array, axis, folded)
    return array.reshape(*array.shape[:axis], -1, folded, *array.shape[axis + 1 :])


def _plan_packing(geometry: Geometry, features: int, filters: int) -> Packing:
    """Plans which positions lie beside each other in the lanes, for features that are filled."""
    return plan_packing(geometry, round_up(features, SUBLANES), filters)


def _arrange(x: Array, dy: Array, geometry: Geometry, packing: Packing) -> tuple[Array, Array]:
    """Returns inputs, filled, and gradients of the outputs as the kernels read them."""
    batch = x.shape[0]
    x = _fill_features(keep_layout(x), -1).reshape(batch, *geometry.spatial, -1)
    dy = keep_layout(dy).reshape(batch, *geometry.out, dy.shape[-1])
    return packing.pack(x), packing.pack(dy)


def _fill_features(array: Array, axis: int) -> Array:
    """Fills input features up to whole tiles of sublanes, or of lanes where they are in several.

    Rows that do not begin with a tile are only loaded from one tile of lanes.
    """
    return fill_axis(array, axis, LANES if array.shape[axis] > LANES else SUBLANES)


def fits_vmem(geometry: Geometry, kernels: tuple[int, ...], batch: int, itemsize: int) -> bool:
    """Returns whether `compute_kernel_gradients` has room for its blocks on every generation of TPUs.

    Args:
        geometry: as in `compute_kernel_gradients`.
        kernels: shape of the candidates, `(K, *k, I, O)`.
        batch: number of samples.
        itemsize: bytes of a number of the inputs.
    """
    return choose_blocks(geometry, kernels, batch, itemsize) is not None


def choose_blocks(
    geometry: Geometry, kernels: tuple[int, ...], batch: int, itemsize: int
) -> Blocks | None:
    """Returns the largest blocks that VMEM has room for, or None; arguments as in `fits_vmem`."""
    geometry = add_height(geometry)
    features, filters = kernels[-2:]
    packing = _plan_packing(geometry, features, filters)
    features = min(round_up(features, SUBLANES), LANES)  # see `_fill_features`
    filters = LANES if filters % LANES == 0 else filters
    room = BLOCKS_SHARE * find_vmem_size()
    for rows, samples in itertools.product(sorted({geometry.size[0], 1}, reverse=True), (4, 2, 1)):
        blocks = Blocks(samples, rows, features, filters)
        # More than 16 sums in registers would spill.
        few_sums = samples == 1 or samples * kernels[0] <= 16
        if (
            batch % samples == 0
            and few_sums
            and _count_bytes(packing, kernels[0], blocks, itemsize) <= room
        ):
            return blocks
    return None


def compute_sample_gradients(
    x: Array,
    dy: Array,
    kernels: Array,
    geometry: Geometry,
    *,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Returns the gradient x_b^T dy_b of each sample's kernel, `[B, *k, I, O]` in the kernels' dtype.

    Args:
        x, dy, geometry, precision: as in `compute_kernel_gradients`.
        kernels: `[B, *k, I, O]`, of which only the shape and the dtype count.

    Raises:
        ValueError: if `choose_sample_blocks` finds none.
    """
    batch, *_, features, filters = kernels.shape
    blocks = choose_sample_blocks(geometry, kernels.shape[1:], batch, x.dtype.itemsize)
    if blocks is None:
        raise ValueError(f"kernels {kernels.shape} and inputs {x.shape} do not fit into VMEM.")
    geometry = add_height(geometry)
    packing = _plan_packing(geometry, features, filters)
    height, width = geometry.size
    samples, rows = blocks.samples, blocks.rows
    x, dy = _arrange(x, dy, geometry, packing)
    filled = x.shape[-1] // packing.number
    padded, pitch = _plan_buffers(packing, blocks)
    d_kernels = pl.pallas_call(
        functools.partial(
            _write_gradients,
            packing=packing,
            pitch=pitch,
            precision=precision,
        ),
        grid=(
            filled // blocks.inputs,
            filters // blocks.outputs,
            height // rows,
            batch // samples,
        ),
        in_specs=_make_specs(packing, blocks),
        out_specs=pl.BlockSpec(
            (samples, rows, width, blocks.inputs, blocks.outputs),
            lambda i, o, row, b: (b, row, 0, i, o),
        ),
        out_shape=jax.ShapeDtypeStruct((batch, height, width, filled, filters), kernels.dtype),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in padded],
        compiler_params=make_parameters("parallel", "parallel", "parallel", "arbitrary"),
        name="sample_conv_kernel_gradients",
    )(x, dy)
    return d_kernels[..., :features, :].reshape(kernels.shape)


def choose_sample_blocks(
    geometry: Geometry, kernel: tuple[int, ...], batch: int, itemsize: int
) -> Blocks | None:
    """Returns the largest blocks of `compute_sample_gradients` that VMEM has room for, or None.

    Args:
        geometry: as in `compute_kernel_gradients`.
        kernel: shape of one kernel, `(*k, I, O)`.
        batch: number of samples.
        itemsize: bytes of a number of the inputs and of the kernels.
    """
    geometry = add_height(geometry)
    features, filters = kernel[-2:]
    packing = _plan_packing(geometry, features, filters)
    i = min(round_up(features, SUBLANES), LANES)  # see `_fill_features`
    parts = sorted({filters, LANES} if filters % LANES == 0 else {filters}, reverse=True)
    for samples, rows, o in itertools.product(
        (4, 2, 1), sorted({geometry.size[0], 1}, reverse=True), parts
    ):
        blocks = Blocks(samples, rows, i, o)
        buffers, _ = _plan_buffers(packing, blocks)
        width = geometry.size[1]
        sizes = [count_vmem_bytes(shape, 4) for shape in (*buffers, (width * i, o))]
        sizes += [
            2 * count_vmem_bytes((samples, *shape), itemsize)
            for shape in (
                *_list_shapes(packing, blocks),
                (rows, width, i, o),
            )
        ]
        if batch % samples == 0 and sum(sizes) <= BLOCKS_SHARE * find_vmem_size():
            return blocks
    return None


def _list_shapes(packing: Packing, blocks: Blocks) -> list[tuple[int, ...]]:
    """Returns the shapes of a sample's packed inputs and outputs."""
    geometry, number = packing.geometry, packing.number
    return [
        (*geometry.spatial, number * blocks.inputs),
        (*geometry.out, number * blocks.outputs),
    ]


def _plan_buffers(packing: Packing, blocks: Blocks) -> tuple[list[tuple[int, ...]], int]:
    """Returns the shapes of the buffers for padded inputs and outputs, and the positions of a row."""
    geometry, number = packing.geometry, packing.number
    (height, width), (stride, step) = geometry.out, geometry.strides
    down, right = geometry.kernel_dilation
    left, _ = geometry.padding[1]
    # The zeros after one row are the zeros before the next.
    pitch = max(
        left + geometry.spatial[1] + (packing.offset > 0),
        (width - 1) * step + (geometry.size[1] - 1) * right + 1 - left,
        width * step,
    )
    pitch = round_up(pitch, SUBLANES * step)
    # A row of zeros before and one after those that the kernel meets: shifts go beyond both ends.
    lines = 1 + height + (geometry.size[0] - 1) * down // stride + 1
    inputs = (blocks.samples, stride, lines * pitch, number * blocks.inputs)
    outputs = (blocks.samples, height * pitch // step, number * blocks.outputs)
    return [inputs, outputs], pitch


def _count_bytes(packing: Packing, num_kernels: int, blocks: Blocks, itemsize: int) -> int:
    """Returns the bytes of VMEM that the kernel's blocks and buffers take."""
    (inputs, outputs), _ = _plan_buffers(packing, blocks)
    lanes = packing.number * blocks.outputs
    groups = blocks.rows * -(-packing.width // packing.number)
    candidates = (num_kernels * groups, blocks.inputs, lanes)
    buffers = [
        *((2, (blocks.samples, *shape), itemsize) for shape in _list_shapes(packing, blocks)),
        (1, candidates, 4),
        (2, candidates, 4),
        (1, (blocks.samples, groups * num_kernels, lanes), 4),
        (1, inputs, 4),
        (1, outputs, 4),
    ]
    return sum(number * count_vmem_bytes(shape, size) for number, shape, size in buffers)


def _call_kernel(
    x, dy, kernels, coefficients, scales, packing: Packing, blocks: Blocks, precision
) -> tuple[Array, Array, Array | None]:
    """Computes the gradients in two dimensions; the samples are the innermost axis of the grid."""
    num_kernels, height, width, features, filters = kernels.shape
    samples, rows, folded = blocks.samples, blocks.rows, packing.number
    batch = x.shape[0]
    steps = batch // samples
    grid = (features // blocks.inputs, filters // blocks.outputs, height // rows, steps)
    # Taps that share the lanes lie beside each other.
    w = _fold(kernels, 2, folded).swapaxes(3, 4)
    groups, lanes = w.shape[2], folded * blocks.outputs
    w = w.reshape(*w.shape[:4], -1)
    c = _fold(coefficients.reshape(batch, height, width, num_kernels), 2, folded)
    c = c.reshape(batch, -1, num_kernels)
    candidates = (num_kernels, rows, groups, blocks.inputs, lanes)
    sums = rows * groups * num_kernels
    padded, pitch = _plan_buffers(packing, blocks)
    arrays = [c, x, dy, w]
    in_specs = [
        pl.BlockSpec(
            (samples, *c.shape[1:]),
            lambda i, o, row, b: (b, 0, 0),
            memory_space=pltpu.SMEM,
        ),
        *_make_specs(packing, blocks),
        pl.BlockSpec(
            candidates,
            lambda i, o, row, b: (0, row, 0, i, o),
            pipeline_mode=pl.Buffered(1),  # it changes only with the first axes of the grid
        ),
    ]
    out_shape = [
        jax.ShapeDtypeStruct(w.shape, jnp.float32),
        jax.ShapeDtypeStruct((*grid, samples, folded, sums), jnp.float32),
    ]
    out_specs = [
        pl.BlockSpec(candidates, lambda i, o, row, b: (0, row, 0, i, o)),
        pl.BlockSpec(
            (1, 1, 1, 1, samples, folded, sums), lambda i, o, row, b: (i, o, row, b, 0, 0, 0)
        ),
    ]
    if scales is not None:
        arrays += [jnp.tile(scale.reshape(steps, samples, -1), folded) for scale in scales]
        in_specs += [
            pl.BlockSpec((1, samples, folded * blocks.inputs), lambda i, o, row, b: (b, 0, i)),
            pl.BlockSpec((1, samples, lanes), lambda i, o, row, b: (b, 0, o)),
        ]
        out_shape.append(
            jax.ShapeDtypeStruct((grid[0], grid[2], steps, samples, folded * filters), jnp.float32)
        )
        out_specs.append(
            pl.BlockSpec((1, 1, 1, samples, lanes), lambda i, o, row, b: (i, row, b, 0, o))
        )

    def body(c_ref, x_ref, dy_ref, w_ref, *refs):
        channels_ref = filters_ref = df_ref = None
        if scales is None:
            dw_ref, dc_ref, *scratch = refs
        else:
            channels_ref, filters_ref, dw_ref, dc_ref, df_ref, *scratch = refs
        _accumulate_gradients(
            *(c_ref, x_ref, dy_ref, w_ref, channels_ref, filters_ref, dw_ref, dc_ref, df_ref),
            *scratch,
            packing=packing,
            pitch=pitch,
            precision=precision,
        )

    d_kernels, d_sums, *d_filters = pl.pallas_call(
        body,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            pltpu.VMEM(shape, jnp.float32) for shape in (*padded, (samples, sums, lanes))
        ],
        compiler_params=make_parameters("parallel", "parallel", "parallel", "arbitrary"),
        name="dynamic_conv_kernel_gradients",
    )(*arrays)
    d_kernels = d_kernels.reshape(*w.shape[:4], folded, filters).swapaxes(3, 4)
    d_kernels = d_kernels.reshape(*w.shape[:2], -1, features, filters)[:, :, :width]
    # [rows of blocks, steps, samples, folded, rows, groups, K], and the batch first, the taps in order.
    d_c = d_sums.sum((0, 1)).reshape(-1, steps, samples, folded, rows, groups, num_kernels)
    d_c = d_c.transpose(1, 2, 0, 4, 5, 3, 6).reshape(batch, height, -1, num_kernels)
    d_coefficients = d_c[:, :, :width].reshape(coefficients.shape)
    if scales is None:
        return d_kernels, d_coefficients, None
    d_filters = d_filters[0].sum((0, 1)).reshape(batch, folded, filters).sum(1)
    return d_kernels, d_coefficients, d_filters


def _make_specs(packing: Packing, blocks: Blocks) -> list[pl.BlockSpec]:
    """Returns the parts of the inputs and of the outputs' gradients that a step of the grid reads."""
    inputs, outputs = _list_shapes(packing, blocks)
    return [
        pl.BlockSpec((blocks.samples, *inputs), lambda i, o, row, b: (b, 0, 0, i)),
        pl.BlockSpec((blocks.samples, *outputs), lambda i, o, row, b: (b, 0, 0, o)),
    ]


def _write_gradients(
    x_ref,  # [samples, *spatial, I]
    dy_ref,  # [samples, *out, O]
    dw_ref,  # [samples, rows, kernel width, I, O]
    inputs_ref,  # as in `_accumulate_gradients`
    outputs_ref,
    *,
    packing: Packing,
    pitch: int,
    precision,
):
    """Writes the gradient of several samples' kernels."""
    samples, rows = dw_ref.shape[:2]

    @pl.when(pl.program_id(3) == 0)
    def _():
        inputs_ref[...] = jnp.zeros_like(inputs_ref)
        outputs_ref[...] = jnp.zeros_like(outputs_ref)

    for s in range(samples):
        _write_inputs(x_ref.at[s], None, inputs_ref.at[s], packing, pitch)
        _write_outputs(dy_ref.at[s], outputs_ref.at[s])

    def write_kernel_row(row, _):
        for s in range(samples):
            product = _multiply_shifted(
                inputs_ref.at[s],
                outputs_ref[s].astype(dy_ref.dtype),
                *(pl.program_id(2) * rows + row, packing.geometry, pitch, precision),
            )
            for column, g in enumerate(packing.split(product)):
                dw_ref[s, row, column] = g.astype(dw_ref.dtype)

    lax.fori_loop(0, rows, write_kernel_row, None)


def _accumulate_gradients(
    c_ref,  # [samples, rows * groups * folded, K], scalars
    x_ref,  # [samples, *spatial, I]
    dy_ref,  # [samples, *out, O]
    w_ref,  # [K, rows, groups, I, folded * O]
    channels_ref,  # [1, samples, I], or None
    filters_ref,  # [1, samples, folded * O], or None
    dw_ref,  # like w_ref; it stays in VMEM until all samples have passed
    dc_ref,  # [..., samples, folded, rows * groups * K]
    df_ref,  # [..., samples, folded * O], or None
    inputs_ref,  # x between zeros, in float32, of which any row can be the first to be loaded
    outputs_ref,  # dy, likewise
    sums_ref,  # R, [samples, rows * groups * K, folded * O]
    *,
    packing: Packing,
    pitch: int,
    precision,
):
    """Adds several samples' share to dW, and writes their dc and df."""
    samples = range(x_ref.shape[0])
    num_kernels, rows, groups, _, lanes = w_ref.shape

    @pl.when(pl.program_id(3) == 0)
    def _():
        dw_ref[...] = jnp.zeros_like(dw_ref)
        inputs_ref[...] = jnp.zeros_like(inputs_ref)
        outputs_ref[...] = jnp.zeros_like(outputs_ref)

    for s in samples:
        scale = None if channels_ref is None else channels_ref[0, pl.ds(s, 1)]
        _write_inputs(x_ref.at[s], scale, inputs_ref.at[s], packing, pitch)
        _write_outputs(dy_ref.at[s], outputs_ref.at[s])
    if df_ref is not None:
        df_ref[...] = jnp.zeros_like(df_ref)
    folded = packing.number
    tap_of_lane = lax.broadcasted_iota(jnp.int32, (1, lanes), 1) // (lanes // folded)

    def add_kernel_row(row, _):
        tap_row = pl.program_id(2) * rows + row
        products = [
            _multiply_shifted(
                inputs_ref.at[s],
                outputs_ref[s].astype(dy_ref.dtype),
                *(tap_row, packing.geometry, pitch, precision),
            )
            for s in samples
        ]
        parts = [_fold_taps(packing.split(product), folded) for product in products]
        for group in range(groups):
            weights = {}
            for s, k in itertools.product(samples, range(num_kernels)):
                first = (tap_row * groups + group) * folded
                weight = jnp.full((1, lanes), c_ref[s, first, k])
                for n in range(1, folded):
                    weight = jnp.where(tap_of_lane < n, weight, c_ref[s, first + n, k])
                weights[s, k] = weight
            _add_group(
                [part[group] for part in parts],
                weights,
                filters_ref,
                w_ref.at[:, row, group],
                dw_ref.at[:, row, group],
                sums_ref.at[:, pl.ds((row * groups + group) * num_kernels, num_kernels)],
                df_ref,
            )

    lax.fori_loop(0, rows, add_kernel_row, None)
    for s in samples:
        # A product with the weights, or ones, puts the sums over lanes side by side.
        scale = jnp.ones((1, lanes), jnp.float32)
        if filters_ref is not None:
            scale = filters_ref[0, pl.ds(s, 1)]
        mask = tap_of_lane == lax.broadcasted_iota(jnp.int32, (folded, lanes), 0)
        dc_ref[0, 0, 0, 0, s] = lax.dot_general(
            jnp.where(mask, scale, 0.0),
            sums_ref[s],
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )


def _add_group(products, weights, filters_ref, w_ref, dw_ref, sums_ref, df_ref):
    """Adds the share of one group of taps.

    A few rows of G at a time meet all kernels and stay in registers meanwhile.

    Args:
        products: G of each sample, `[I, folded * O]`.
        weights: rows `[1, folded * O]` of c, by sample and kernel.
        filters_ref: as in `_accumulate_gradients`, like `df_ref`.
        w_ref, dw_ref: `[K, I, folded * O]`.
        sums_ref: `[samples, K, folded * O]`.
    """
    num_kernels, features, width = w_ref.shape
    scaled = weights
    if filters_ref is not None:
        scaled = {(s, k): row * filters_ref[0, pl.ds(s, 1)] for (s, k), row in weights.items()}
    results: dict[tuple[int, int], list[Array]] = {place: [] for place in weights}
    for start in range(0, width, LANES):
        lanes = slice(start, min(start + LANES, width))
        sums = dict.fromkeys(weights, 0.0)
        for first in range(0, features, SUBLANES):
            rows = slice(first, first + SUBLANES)
            parts = [product[rows, lanes] for product in products]
            for k in range(num_kernels):
                total, w = dw_ref[k, rows, lanes], w_ref[k, rows, lanes].astype(jnp.float32)
                for s, part in enumerate(parts):
                    total += scaled[s, k][:, lanes] * part
                    sums[s, k] += part * w
                dw_ref[k, rows, lanes] = total
        for place, partial in sums.items():
            results[place].append(jnp.sum(partial, axis=0, keepdims=True))
    for (s, k), tiles in results.items():
        result = jnp.concatenate(tiles, axis=1)
        sums_ref[s, pl.ds(k, 1)] = result
        if df_ref is not None:
            df_ref[0, 0, 0, pl.ds(s, 1)] += weights[s, k] * result


def _fold_taps(taps: list[Array], folded: int) -> list[Array]:
    """Puts the products of a row of taps beside each other, so many at a time."""
    taps = [*taps, *[jnp.zeros_like(taps[0])] * (-len(taps) % folded)]
    return [jnp.concatenate(taps[n : n + folded], 1) for n in range(0, len(taps), folded)]


def _write_inputs(x_ref, scale, padded_ref, packing: Packing, pitch: int):
    """Writes a sample's weighted rows between zeros, those of each phase of the vertical stride together."""
    geometry = packing.geometry
    (above, _), (left, _) = geometry.padding
    _, width, features = x_ref.shape
    for row in range(geometry.spatial[0]):
        line, phase = divmod(row + above, geometry.strides[0])
        if (line + 2) * pitch > padded_ref.shape[1]:  # strides may leave out the last rows
            continue
        x = x_ref[row].astype(padded_ref.dtype)
        if scale is not None:
            x = x * scale
        for lanes, new_lanes, ahead in packing.list_lanes(features):
            rows = pl.ds((line + 1) * pitch + left + ahead, width)
            padded_ref[phase, rows, new_lanes] = x[:, lanes]


def _write_outputs(dy_ref, padded_ref):
    """Copies the gradients of a sample's outputs between zeros."""
    height, width, _ = dy_ref.shape
    pitch = padded_ref.shape[0] // height
    for row in range(height):
        padded_ref[pl.ds(row * pitch, width)] = dy_ref[row].astype(padded_ref.dtype)


def _multiply_shifted(
    inputs_ref, dy: Array, tap_row, geometry: Geometry, pitch: int, precision
) -> Array:
    """Returns x^T dy over all positions for one row of the kernel, in float32.

    The products `[I, O]` of its columns lie below each other.
    """
    (stride, step), (down, right) = geometry.strides, geometry.kernel_dilation
    line, phase = tap_row * down // stride, tap_row * down % stride
    start = pl.multiple_of((line + 1) * pitch, SUBLANES)
    shifts = [
        inputs_ref[phase, pl.ds(start + column * right, dy.shape[0], stride=step)]
        for column in range(geometry.size[1])
    ]
    return lax.dot_general(
        jnp.concatenate([x.astype(dy.dtype) for x in shifts], axis=-1),
        dy,
        (((0,), (0,)), ((), ())),
        precision=choose_matrix_precision(dy.dtype, precision),
        preferred_element_type=jnp.float32,
    )
