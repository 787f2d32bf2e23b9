"""The equal ways to compute a dynamic convolution, one function each, one signature.

    y_b = conv(x_b, sum_k mix[b, k] * taps[b] * W_k)

Each takes `inputs [B, *spatial, I]`, `kernels [K, *k, I/G, O]`, `mix` (`[B, K]`, `[B, *out, K]`, or None
for K = 1 and weight one), `taps` (`[B, *k]` or None), a `Geometry` and a precision, and returns
`[B, *out, O]` in the inputs' dtype. Kernels and attention are mixed in float32 or wider and rounded to
the inputs' dtype afterwards. `why_unsupported` explains which cases a lowering cannot do. The axis
letters are those of `geometry`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops import fused_samples_tpu, fused_tpu
from dyn.ops.assemble import assemble_plainly
from dyn.ops.depthwise import convolve_depthwise
from dyn.ops.dtypes import broadcast_weights, float32_or_wider
from dyn.ops.geometry import Array, Geometry, Problem
from dyn.ops.sharding import may_use_several_mesh_axes

# Bytes of patches and kernels that `convolve_by_samples` handles at once: a large picture, or several
# small ones.
CHUNK_BYTES = 4_000_000
# Bytes of kernels of single samples that are in a TPU's memory at once: those of the largest layer of a
# ResNet-18 at a batch of 128. They are made 1.4 times as fast in one piece as in two.
KERNEL_BYTES = 700_000_000

Lowering = Callable[[Array, Array, Array | None, Array | None, Geometry, lax.PrecisionLike], Array]


def mix_kernels(kernels: Array, mix: Array | None, taps: Array | None) -> Array:
    """Mixes candidate kernels into one per sample: `[K, *k, i, O]` to `[B, *k, i, O]`.

    W_b = taps[b] * sum_k mix[b, k] W_k, with at least one of `mix` and `taps`. The sum is one matrix
    product, so that no products of the K kernels are stored.
    """
    dtype = float32_or_wider(*(a for a in (kernels, mix, taps) if a is not None))
    if mix is None:
        assert taps is not None  # at least one of them is there
        # Also a product, because its gradient sums over samples much faster than that of a broadcast.
        mix = jnp.ones((taps.shape[0], 1), dtype)
    flat = kernels.astype(dtype).reshape(kernels.shape[0], math.prod(kernels.shape[1:]))
    mixed = jnp.matmul(mix.astype(dtype), flat, precision=lax.Precision.HIGHEST)
    mixed = mixed.reshape(mix.shape[0], *kernels.shape[1:])
    if taps is None:
        return mixed
    taps = taps.astype(dtype)
    return mixed * taps.reshape(*taps.shape, *(1,) * (mixed.ndim - taps.ndim))


def convolve_by_reference(inputs, kernels, mix, taps, geometry, precision) -> Array:
    """Convolves each sample with its own kernel through `jax.vmap`: the definition.

    XLA turns it into one convolution whose groups are the samples. It gathers a sharded batch, and on a CPU
    its gradient is 15 to 50 times slower than a static convolution's. On a GPU it is a call of cuDNN, which
    writes no patches: at many positions it moves a third of their bytes. Where the mesh is known to have
    several axes, the gradient would be wrong, and patches are multiplied instead.
    """
    if may_use_several_mesh_axes(inputs, kernels, mix, taps, unknown=False):
        return convolve_by_patches(inputs, kernels, mix, taps, geometry, precision)
    if mix is None and taps is None:
        return geometry.convolve(inputs, kernels[0].astype(inputs.dtype), precision)
    sample_kernels = mix_kernels(kernels, mix, taps).astype(inputs.dtype)
    convolve = jax.vmap(lambda x, w: geometry.convolve(x[None], w, precision)[0])
    return convolve(inputs, sample_kernels)


def convolve_by_taps(inputs, kernels, mix, taps, geometry, precision) -> Array:
    """Adds up one matrix product per sample and tap: y_b = sum_t shift_t(x_b) W_b[t].

    Taps follow one another: the kernels of all samples for one tap are small even if those for all taps
    are not. The backward pass mixes them again instead of keeping them.
    """
    batch, features = inputs.shape[0], inputs.shape[-1] // geometry.groups
    shifted = jnp.stack(geometry.shift_inputs(inputs))
    shifted = shifted.reshape(
        geometry.taps, batch, geometry.positions, 1, geometry.groups, features
    )
    kernels = _grouped_kernels(kernels, geometry)  # [K, T, i, G, o]
    weights = _weights_by_tap(mix, taps, geometry.taps)

    def add_tap(total, tap):
        x, kernels, weight = tap
        w = _sample_kernels(kernels[:, None], weight, None).astype(inputs.dtype)
        return total + _apply_samples(x, w, precision).astype(total.dtype), None

    wide = float32_or_wider(inputs)
    total = jnp.zeros((*shifted.shape[1:3], geometry.groups, kernels.shape[-1]), wide)
    by_tap = (shifted, jnp.moveaxis(kernels, 1, 0), weights)
    total, _ = lax.scan(jax.checkpoint(add_tap, prevent_cse=False), total, by_tap)
    total = total.astype(inputs.dtype)
    return total.reshape(batch, *geometry.out, geometry.groups * kernels.shape[-1])


def convolve_by_patches(inputs, kernels, mix, taps, geometry, precision) -> Array:
    """Multiplies patches by kernels in one batched matrix product: y_b = patches(x_b) W_b."""
    w = _sample_kernels(kernels, mix, taps)
    return _multiply_patches(inputs, w.astype(inputs.dtype), geometry, precision)


def convolve_by_outputs(inputs, kernels, mix, taps, geometry, precision) -> Array:
    """Convolves with each candidate and mixes the outputs: y_b = sum_k mix[b, k] conv(x_b, W_k).

    The gradient of a single convolution with all K kernels side by side would take twice the time on a
    CPU. On a mesh that may have several axes, groups are convolved as products of patches: XLA's gradient
    would be wrong, see `may_use_several_mesh_axes`.
    """
    del taps  # always None, see `why_unsupported`
    multiply = geometry.groups > 1 and may_use_several_mesh_axes(inputs, kernels, mix, unknown=True)

    def convolve(kernel):
        if multiply:
            return _multiply_patches(inputs, kernel[None], geometry, precision)
        return geometry.convolve(inputs, kernel, precision)

    y = [convolve(kernel.astype(inputs.dtype)) for kernel in kernels]
    return y[0] if mix is None else _mix_outputs(y, mix)


def convolve_by_shared_patches(inputs, kernels, mix, taps, geometry, precision) -> Array:
    """Multiplies patches by all K kernels: y_b = sum_k mix[b, k] (taps[b] * patches(x_b)) W_k.

    Tap attention scales the patches instead of the kernels, so no per-sample kernels are made.
    """
    x = _grouped_patches(inputs, geometry)  # [B, P, T, G, i]
    if taps is not None:
        x = x * broadcast_weights(taps.reshape(taps.shape[0], 1, geometry.taps, 1, 1), x)
    w = _grouped_kernels(kernels, geometry).astype(inputs.dtype)  # [K, T, i, G, o]
    rows, depthwise = batch_or_default(x.shape[0]) * x.shape[1], w.shape[2] == 1
    if depthwise or rows < w.shape[-1]:
        # With few rows, laying the kernels side by side would take longer than the products.
        y = [_apply_samples(x, one[None], precision) for one in w]
    else:
        wide = jnp.moveaxis(w, 0, 3)  # [T, i, G, K, o]
        wide = wide.reshape(1, *wide.shape[:3], wide.shape[3] * wide.shape[4])
        y = _apply_samples(x, wide, precision)
        y = list(jnp.moveaxis(y.reshape(*y.shape[:3], len(w), w.shape[-1]), 3, 0))
    y = [one.reshape(inputs.shape[0], *geometry.out, kernels.shape[-1]) for one in y]
    return y[0] if mix is None else _mix_outputs(y, mix)


def convolve_by_samples(
    inputs, kernels, mix, taps, geometry, precision, *, channels=None, filters=None
) -> Array:
    """Computes `convolve_by_patches` for a few samples at a time, which stay in a processor's cache.

    The backward pass extracts the patches and mixes the kernels again; only the inputs are kept for it.
    `channels [B, I]` and `filters [B, O]`, possible for one group only, are multiplied onto the kernels.
    """

    def convolve_chunk(x, mix, taps, channels, filters):
        w = _sample_kernels(kernels, mix, taps)
        for weights, axis in ((channels, -2), (filters, -1)):
            if weights is not None:
                shape = [len(weights), *(1,) * (w.ndim - 1)]
                shape[axis] = weights.shape[1]
                w = w * weights.reshape(shape).astype(w.dtype)
        return _multiply_patches(x, w.astype(x.dtype), geometry, precision)

    return map_chunks(
        convolve_chunk,
        (inputs, mix, taps, channels, filters),
        num_chunks(inputs.shape[0], kernels.shape[1:], geometry, inputs.dtype.itemsize),
    )


def kernel_is_smaller(kernel: tuple[int, ...], geometry: Geometry) -> bool:
    """Returns whether a kernel `(*k, I/G, O)` has fewer numbers than its inputs and outputs together.

    The kernel is then cheaper to weight. On a CPU each weighted number of an input or output costs memory
    traffic four times, forward and backward; the numbers of a kernel in the cache cost hardly anything.
    """
    inputs = math.prod(geometry.spatial) * kernel[-2] * geometry.groups
    outputs = geometry.positions * kernel[-1]
    return math.prod(kernel) <= inputs + outputs


def assemble_kernels(
    mix: Array,
    cells: Array,
    dtype,
    fused: bool,
    scales: tuple[Array, Array] | None = None,
) -> Array:
    """Assembles a kernel per sample from cells: W_b[t, q i, p o] = sum_j mix[b, t, p, q, j] E_j.

    Args:
        mix: weights `[B, T, p, q, n]` of n cells in each of the p x q blocks of T taps.
        cells: E, `[n, i, o]`, or `[n, T, i, o]` for other cells at each tap, where p = q = 1.
        dtype: of the kernels.
        fused: whether to use a Pallas kernel for TPUs where it can do this, see `dyn.ops.assemble_tpu`.
        scales: `(u [B, i, N], v [N, T, o])` for the weight 2 sigmoid(sum_n u[b, i, n] v[n, t, o]) of every
            number of a kernel, with cells for each tap; None for no weights.

    Returns:
        `[B, T, q i, p o]`.
    """
    if fused:
        from dyn.ops import assemble_tpu  # imports Pallas

        terms = 0 if scales is None else scales[0].shape[-1]
        if assemble_tpu.why_unsupported(mix.shape, cells.shape, dtype, terms) is None:
            return assemble_tpu.assemble_kernels(mix, cells, dtype, scales)
    return assemble_plainly(mix, cells, dtype, scales)


def convolve_by_sample_kernels(inputs, kernels, geometry, precision) -> Array:
    """Convolves each sample with its own kernel in a Pallas kernel for TPUs: `kernels [B, *k, I, O]`."""
    out = (inputs.shape[0], *geometry.out, kernels.shape[-1])
    if 0 in out:
        return jnp.zeros(out, inputs.dtype)
    return _sample_conv(geometry.pad_edges(inputs), kernels, geometry, precision)


# The jit gives the operation a name in the jaxpr, so that `dyn.diagnostics` can count it.
@partial(jax.jit, static_argnames=("geometry", "precision"))
def _sample_conv(inputs, kernels, geometry, precision) -> Array:
    return fused_samples_tpu.convolve_with_sample_kernels(inputs, kernels, geometry, precision)


def map_chunks(function: Callable[..., Array], arrays: tuple, number: int) -> Array:
    """Computes `function(*arrays)` in `number` chunks of the batch, one after another.

    The backward pass computes each chunk again.
    """

    def cut(x):
        return x.reshape(number, x.shape[0] // number, *x.shape[1:])

    y = lax.map(
        jax.checkpoint(lambda chunk: function(*chunk), prevent_cse=False), jax.tree.map(cut, arrays)
    )
    return y.reshape(y.shape[0] * y.shape[1], *y.shape[2:])


def batch_or_default(batch: int) -> int:
    """Returns the batch size, or 32 for a symbolic one, which cannot be compared."""
    return batch if isinstance(batch, int) else 32


def num_chunks(batch: int, kernel: tuple[int, ...], geometry: Geometry, itemsize: int) -> int:
    """Returns the smallest number of equal chunks of the batch that each fit into `CHUNK_BYTES`.

    A symbolic batch is cut into single samples.
    """
    if not isinstance(batch, int):
        return batch
    patches = geometry.positions * geometry.taps * kernel[-2] * geometry.groups
    sample_bytes = (patches + math.prod(kernel)) * itemsize
    most = max(1, CHUNK_BYTES // max(1, sample_bytes))
    fitting = (n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= most)
    return min(fitting, default=1)


def map_with_kernels(
    function: Callable[..., Array], arrays: tuple, kernel: tuple[int, ...]
) -> Array:
    """Computes `function(*arrays)` with at most `KERNEL_BYTES` of its samples' kernels `(*k, I, O)` at once.

    The backward pass makes the kernels again, unless they are smaller than the inputs, the first array.
    """
    inputs = arrays[0]
    batch, size = len(inputs), math.prod(kernel) * inputs.dtype.itemsize
    most = max(1, KERNEL_BYTES // size)
    number = next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= most)
    if number > 1:
        return map_chunks(function, arrays, number)
    if batch * size < inputs.nbytes:
        return function(*arrays)
    return jax.checkpoint(function)(*arrays)


LOWERINGS: dict[str, Lowering] = {
    "reference": convolve_by_reference,
    "taps": convolve_by_taps,
    "patches": convolve_by_patches,
    "outputs": convolve_by_outputs,
    "shared": convolve_by_shared_patches,
    "samples": convolve_by_samples,
    "fused": fused_tpu.convolve_by_fused_kernel,
}


def why_unsupported(lowering: str, problem: Problem) -> str | None:
    """Explains why a lowering cannot solve a problem; None if it can."""
    if problem.pixelwise and lowering not in ("outputs", "shared", "fused"):
        return "a pixel-wise mixture has no per-sample kernel; only outputs can be mixed"
    if problem.tap_attention and lowering == "outputs":
        return "tap attention changes each sample's kernels; whole outputs cannot be mixed"
    if problem.per_sample and lowering in ("outputs", "shared"):
        return "each sample has a kernel, and there are no candidates to mix"
    if lowering != "fused":
        return None
    kernel = fused_samples_tpu if problem.per_sample else fused_tpu
    return kernel.why_unsupported(problem)


def _multiply_patches(inputs: Array, kernels: Array, geometry: Geometry, precision) -> Array:
    """Multiplies each sample's patches by its kernel, or the only one: kernels `[B or 1, *k, i, O]`."""
    if kernels.shape[-2] == 1:
        return convolve_depthwise(inputs, kernels, geometry)
    x, w = _grouped_patches(inputs, geometry), _grouped_kernels(kernels, geometry)
    y = _apply_samples(x, w, precision)
    return y.reshape(inputs.shape[0], *geometry.out, kernels.shape[-1])


def _sample_kernels(kernels: Array, mix: Array | None, taps: Array | None) -> Array:
    """Returns each sample's kernel `[B, *k, i, O]`, or `[1, *k, i, O]` if all samples share one."""
    return kernels if mix is None and taps is None else mix_kernels(kernels, mix, taps)


def _weights_by_tap(mix: Array | None, taps: Array | None, number: int) -> Array | None:
    """Returns the weight of each candidate at each tap, `[T, B, K]`, or None if all are one."""
    if taps is not None:
        taps = taps.reshape(taps.shape[0], number).T[..., None]
    if mix is None:
        return taps
    if taps is None:
        return jnp.broadcast_to(mix, (number, *mix.shape))
    dtype = float32_or_wider(mix, taps)
    return lax.broadcast_to_rank(mix.astype(dtype), taps.ndim) * taps.astype(dtype)


def _grouped_kernels(kernels: Array, geometry: Geometry) -> Array:
    """Reshapes `[N, *k, i, O]` to `[N, T, i, G, o]`."""
    return kernels.reshape(
        kernels.shape[0],
        geometry.taps,
        kernels.shape[-2],
        geometry.groups,
        kernels.shape[-1] // geometry.groups,
    )


def _grouped_patches(inputs: Array, geometry: Geometry) -> Array:
    """Extracts the patches of `[B, *spatial, I]`: `[B, P, T, G, i]`."""
    x = geometry.extract_patches(inputs)
    return x.reshape(*x.shape[:3], geometry.groups, x.shape[-1] // geometry.groups)


def _apply_samples(x: Array, w: Array, precision: lax.PrecisionLike) -> Array:
    """Contracts taps and features: x `[B, P, T, G, i]`, w `[B or 1, T, i, G, o]` to `[B, P, G, o]`.

    `jnp.einsum` may exchange the two operands; XLA then copies both into another layout, and a gradient on
    a CPU takes twice as long.
    """
    if w.shape[2] == 1:  # depthwise: products of single numbers, not worth a matrix product
        wide = float32_or_wider(x)
        y = jnp.sum(x.astype(wide) * w[:, None, :, 0].astype(wide), axis=2)
        return y.astype(x.dtype)
    batch, positions, taps, groups, features = x.shape
    rows, columns = taps * features, w.shape[-1]
    is_shared = w.shape[0] == 1  # a symbolic batch is not 1
    if groups > 1:
        x = jnp.moveaxis(x, 3, 1)  # [B, G, P, T, i]
        w = jnp.moveaxis(w, 3, 1)  # [B or 1, G, T, i, o]
    x = x.reshape(batch * groups, positions, rows)
    w = w.reshape(w.shape[0] * groups, rows, columns)
    if is_shared and groups == 1:
        y = jnp.matmul(x.reshape(batch * positions, rows), w[0], precision=precision)
        return y.reshape(batch, positions, 1, columns)
    if is_shared:
        w = jnp.tile(w, (batch, 1, 1))
    y = jnp.matmul(x, w, precision=precision).reshape(batch, groups, positions, columns)
    return jnp.moveaxis(y, 1, 2)


def _mix_outputs(y: Sequence[Array], mix: Array) -> Array:
    """Mixes candidate outputs: y K times `[B, *out, O]`, mix `[B, K]` or `[B, *out, K]`.

    They are added one after another: the gradient of a sum over an axis of K takes several times as long.
    """
    mix = mix.reshape(mix.shape[0], *(mix.shape[1:-1] or (1,) * (y[0].ndim - 2)), mix.shape[-1])
    total: Any = sum(y_k * broadcast_weights(mix[..., k, None], y_k) for k, y_k in enumerate(y))
    return total
