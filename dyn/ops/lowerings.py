"""The equal ways to compute a dynamic convolution, one function each, one signature.

    y_b = conv(x_b, sum_k mix[b, k] * taps[b] * W_k)

Each takes `inputs [B, *spatial, I]`, `kernels [K, *k, I/G, O]`, `mix` (`[B, K]`, `[B, *out, K]`, or None
for K = 1 and weight one), `taps` (`[B, *k]` or None), a `Window` and a precision, and returns
`[B, *out, O]` in the inputs' dtype. Kernels and attention are mixed in float32 or wider and rounded to
the inputs' dtype afterwards. `unable` says in words what a lowering cannot do. The axis
letters are those of `window`.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dyn.ops.dtypes import float32_or_wider
from dyn.ops.window import Array, Window

# Bytes of patches and kernels that `samples` takes at once: a large picture, or several small ones.
CACHE = 4_000_000

Lowering = Callable[[Array, Array, Array | None, Array | None, Window, lax.PrecisionLike], Array]


def aggregate(kernels: Array, mix: Array | None, taps: Array | None) -> Array:
    """Mixes candidate kernels into one for each sample: `[K, *k, i, O]` to `[B, *k, i, O]`.

    W_b = taps[b] * sum_k mix[b, k] W_k. At least one of `mix` and `taps` is given. No product of K
    kernels is ever stored: the sum is one matrix product.
    """
    dtype = float32_or_wider(*(a for a in (kernels, mix, taps) if a is not None))
    if mix is None:
        # A product as well: its gradient sums over samples much faster than that of a broadcast.
        mix = jnp.ones((taps.shape[0], 1), dtype)
    flat = kernels.astype(dtype).reshape(kernels.shape[0], math.prod(kernels.shape[1:]))
    mixed = jnp.matmul(mix.astype(dtype), flat, precision=lax.Precision.HIGHEST)
    mixed = mixed.reshape(mix.shape[0], *kernels.shape[1:])
    if taps is None:
        return mixed
    taps = taps.astype(dtype)
    return mixed * taps.reshape(*taps.shape, *(1,) * (mixed.ndim - taps.ndim))


def reference(inputs, kernels, mix, taps, window, precision) -> Array:
    """A convolution of each sample with its own kernel, through `jax.vmap`.

    The definition, for tests and for counting. XLA makes one grouped convolution of it, whose gradient
    is 15 to 50 times slower than a static convolution's, and which gathers a sharded batch.
    """
    if mix is None and taps is None:
        return window.convolve(inputs, kernels[0].astype(inputs.dtype), precision)
    sample_kernels = aggregate(kernels, mix, taps).astype(inputs.dtype)
    convolve = jax.vmap(lambda x, w: window.convolve(x[None], w, precision)[0])
    return convolve(inputs, sample_kernels)


def taps(inputs, kernels, mix, taps, window, precision) -> Array:
    """A matrix product for each sample and tap: y_b = sum_t shift_t(x_b) W_b[t], one tap after another.

    Kernels of one tap for all samples are small where those of all taps are not, and backward mixes
    them again instead of keeping them.
    """
    batch, features = inputs.shape[0], inputs.shape[-1] // window.groups
    out = window.output_shape(inputs.shape[1:-1])
    shifted = jnp.stack(window.shifts(inputs))
    shifted = shifted.reshape(window.taps, batch, math.prod(out), 1, window.groups, features)
    kernels = _grouped_kernels(kernels, window)  # [K, T, i, G, o]
    weights = _weights_by_tap(mix, taps, window.taps)

    def add_tap(total, tap):
        x, kernels, weight = tap
        w = _samples_or_shared(kernels[:, None], weight, None).astype(inputs.dtype)
        return total + _apply_samples(x, w, precision), None

    total = jnp.zeros((*shifted.shape[1:3], window.groups, kernels.shape[-1]), inputs.dtype)
    by_tap = (shifted, jnp.moveaxis(kernels, 1, 0), weights)
    total, _ = lax.scan(jax.checkpoint(add_tap, prevent_cse=False), total, by_tap)
    return total.reshape(batch, *out, window.groups * kernels.shape[-1])


def patches(inputs, kernels, mix, taps, window, precision) -> Array:
    """One batched matrix product over patches: y_b = patches(x_b) W_b."""
    w = _samples_or_shared(kernels, mix, taps)
    return _by_patches(inputs, w.astype(inputs.dtype), window, precision)


def outputs(inputs, kernels, mix, taps, window, precision) -> Array:
    """A static convolution with each kernel, its outputs weighed: y_b = sum_k mix[b, k] conv(x_b, W_k).

    Not one convolution with all K kernels side by side: its gradient takes twice the time on a CPU.
    """
    del taps  # see `unable`
    y = [window.convolve(inputs, kernel.astype(inputs.dtype), precision) for kernel in kernels]
    return y[0] if mix is None else _mix_outputs(y, mix)


def shared(inputs, kernels, mix, taps, window, precision) -> Array:
    """One matrix product of patches with all K kernels: y_b = sum_k mix[b, k] (taps[b] * patches(x_b)) W_k.

    Tap attention scales the patches instead of the kernels, so there is no kernel of a sample's own.
    """
    out = window.output_shape(inputs.shape[1:-1])
    x = _grouped_patches(inputs, window)  # [B, P, T, G, i]
    if taps is not None:
        x = x * taps.reshape(taps.shape[0], 1, window.taps, 1, 1).astype(inputs.dtype)
    w = _grouped_kernels(kernels, window).astype(inputs.dtype)  # [K, T, i, G, o]
    rows, depthwise = usual(x.shape[0]) * x.shape[1], w.shape[2] == 1
    if depthwise or rows < w.shape[-1]:
        # Few rows: laying the kernels side by side would take longer than the products.
        y = [_apply_samples(x, one[None], precision) for one in w]
    else:
        wide = jnp.moveaxis(w, 0, 3)  # [T, i, G, K, o]
        wide = wide.reshape(1, *wide.shape[:3], wide.shape[3] * wide.shape[4])
        y = _apply_samples(x, wide, precision)
        y = list(jnp.moveaxis(y.reshape(*y.shape[:3], len(w), w.shape[-1]), 3, 0))
    y = [one.reshape(inputs.shape[0], *out, kernels.shape[-1]) for one in y]
    return y[0] if mix is None else _mix_outputs(y, mix)


def samples(inputs, kernels, mix, taps, window, precision, *, channels=None, filters=None) -> Array:
    """`patches`, a few samples after another, so that patches and kernels stay in a processor's cache.

    Backward stacks the patches and mixes the kernels again, and nothing but the inputs is kept for it.
    `channels [B, I]` and `filters [B, O]`, for one group alone, are multiplied onto the kernels.
    """

    def some(x, mix, taps, channels, filters):
        w = _samples_or_shared(kernels, mix, taps)
        for weights, axis in ((channels, -2), (filters, -1)):
            if weights is not None:
                shape = [len(weights), *(1,) * (w.ndim - 1)]
                shape[axis] = weights.shape[1]
                w = w * weights.reshape(shape).astype(w.dtype)
        return _by_patches(x, w.astype(x.dtype), window, precision)

    return in_turns(
        some,
        (inputs, mix, taps, channels, filters),
        turns(inputs.shape, kernels.shape[1:], window, inputs.dtype.itemsize),
    )


def kernels_are_smaller(inputs: tuple[int, ...], kernel: tuple[int, ...], window: Window) -> bool:
    """Whether a kernel has fewer numbers than what it takes and gives: cheaper to weigh than those.

    On a CPU each number of an input or output that is weighed costs memory traffic four times, forward
    and backward, and those of a kernel in the cache hardly anything.
    """
    outputs = math.prod(window.output_shape(inputs[1:-1])) * kernel[-1]
    return math.prod(kernel) <= math.prod(inputs[1:]) + outputs


def in_turns(function: Callable[..., Array], arrays: tuple, number: int) -> Array:
    """`function(*arrays)`, so many parts of the batch after another; backward computes a part again."""

    def cut(x):
        return x.reshape(number, x.shape[0] // number, *x.shape[1:])

    y = lax.map(
        jax.checkpoint(lambda part: function(*part), prevent_cse=False), jax.tree.map(cut, arrays)
    )
    return y.reshape(y.shape[0] * y.shape[1], *y.shape[2:])


def usual(batch: int) -> int:
    """The batch; 32 for one that is symbolic, about which nothing can be decided."""
    return batch if isinstance(batch, int) else 32


def turns(inputs: tuple[int, ...], kernel: tuple[int, ...], window: Window, itemsize: int) -> int:
    """How many turns `samples` takes: as few as cut the batch evenly into what a cache holds.

    One for each sample where the batch is symbolic.
    """
    batch, *spatial, features = inputs
    if not isinstance(batch, int):
        return batch
    positions = math.prod(window.output_shape(spatial))
    numbers = positions * window.taps * features + math.prod(kernel)
    most = max(1, CACHE // max(1, numbers * itemsize))
    fitting = (n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= most)
    return min(fitting, default=1)


LOWERINGS: dict[str, Lowering] = {
    "reference": reference,
    "taps": taps,
    "patches": patches,
    "outputs": outputs,
    "shared": shared,
    "samples": samples,
}


def unable(lowering: str, *, pixelwise: bool, tap_attention: bool) -> str | None:
    """Why a lowering cannot compute a case, or None if it can."""
    if pixelwise and lowering not in ("outputs", "shared"):
        return "a pixel-wise mixture has no kernel of a sample's own; only outputs can be mixed"
    if tap_attention and lowering == "outputs":
        return "tap attention changes every kernel within the window; whole outputs cannot be mixed"
    return None


def _by_patches(inputs: Array, kernels: Array, window: Window, precision) -> Array:
    """Patches of each sample times its kernel, or the only one: kernels `[B or 1, *k, i, O]`."""
    if kernels.shape[-2] == 1:
        return _depthwise(inputs, kernels, window)
    x, w = _grouped_patches(inputs, window), _grouped_kernels(kernels, window)
    y = _apply_samples(x, w, precision)
    out = window.output_shape(inputs.shape[1:-1])
    return y.reshape(inputs.shape[0], *out, kernels.shape[-1])


def _samples_or_shared(kernels: Array, mix: Array | None, taps: Array | None) -> Array:
    """Each sample's kernel `[B, *k, i, O]`, or the only one there is as `[1, *k, i, O]`."""
    return kernels if mix is None and taps is None else aggregate(kernels, mix, taps)


def _weights_by_tap(mix: Array | None, taps: Array | None, number: int) -> Array | None:
    """The weight of each candidate at each tap, `[T, B, K]`; None where there is none."""
    if taps is not None:
        taps = taps.reshape(taps.shape[0], number).T[..., None]
    if mix is None:
        return taps
    if taps is None:
        return jnp.broadcast_to(mix, (number, *mix.shape))
    dtype = float32_or_wider(mix, taps)
    return mix.astype(dtype) * taps.astype(dtype)


def _grouped_kernels(kernels: Array, window: Window) -> Array:
    """`[N, *k, i, O]` to `[N, T, i, G, o]`."""
    return kernels.reshape(
        kernels.shape[0],
        window.taps,
        kernels.shape[-2],
        window.groups,
        kernels.shape[-1] // window.groups,
    )


def _grouped_patches(inputs: Array, window: Window) -> Array:
    """`[B, *spatial, I]` to `[B, P, T, G, i]`."""
    x = window.patches(inputs)
    return x.reshape(*x.shape[:3], window.groups, x.shape[-1] // window.groups)


def _depthwise(inputs: Array, kernels: Array, window: Window) -> Array:
    """Products of numbers, which need no patches side by side: kernels `[B or 1, *k, 1, O]`."""
    each = kernels.shape[-1] // inputs.shape[-1]
    kernels = kernels.reshape(kernels.shape[0], window.taps, *(1,) * window.rank, kernels.shape[-1])
    return sum(
        (x if each == 1 else jnp.repeat(x, each, axis=-1)) * kernels[:, t]
        for t, x in enumerate(window.shifts(inputs))
    )


def _apply_samples(x: Array, w: Array, precision: lax.PrecisionLike) -> Array:
    """Contracts taps and features: x `[B, P, T, G, i]`, w `[B or 1, T, i, G, o]` to `[B, P, G, o]`.

    Not by `jnp.einsum`: it may exchange the two, XLA then copies both in another layout, and a gradient
    on a CPU takes twice as long.
    """
    if w.shape[2] == 1:  # depthwise: products of single numbers, not worth a matrix product
        return jnp.sum(x * w[:, None, :, 0], axis=2)
    batch, positions, taps, groups, features = x.shape
    rows, columns = taps * features, w.shape[-1]
    for_all = w.shape[0] == 1  # a symbolic batch is not 1
    if groups > 1:
        x = jnp.moveaxis(x, 3, 1)  # [B, G, P, T, i]
        w = jnp.moveaxis(w, 3, 1)  # [B or 1, G, T, i, o]
    x = x.reshape(batch * groups, positions, rows)
    w = w.reshape(w.shape[0] * groups, rows, columns)
    if for_all and groups == 1:
        y = jnp.matmul(x.reshape(batch * positions, rows), w[0], precision=precision)
        return y.reshape(batch, positions, 1, columns)
    if for_all:
        w = jnp.tile(w, (batch, 1, 1))
    y = jnp.matmul(x, w, precision=precision).reshape(batch, groups, positions, columns)
    return jnp.moveaxis(y, 1, 2)


def _mix_outputs(y: Sequence[Array], mix: Array) -> Array:
    """Weighs candidate outputs: y K times `[B, *out, O]`, mix `[B, K]` or `[B, *out, K]`.

    One after another: a sum over an axis of K has a gradient of several times their time.
    """
    mix = mix.astype(y[0].dtype).reshape(
        mix.shape[0], *(mix.shape[1:-1] or (1,) * (y[0].ndim - 2)), mix.shape[-1]
    )
    return sum(y_k * mix[..., k, None] for k, y_k in enumerate(y))
