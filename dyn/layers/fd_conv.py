"""Frequency dynamic convolution: candidate kernels that divide one kernel's spectrum among them.

Chen, Gu, Li, Yan, Fu: Frequency Dynamic Convolution for Dense Image Prediction. CVPR 2025.
https://arxiv.org/abs/2503.18783

Deviations from the authors' code: the filter head starts near zero, like the other heads (the code
checks a misspelt attribute and skips that head, so that its layer does not start as the static
convolution); the Fourier weights are those of the orthonormal transform, so that they have the kernel's
scale; groups of frequencies differ by one in size if they cannot be equal; any kernel size, 1-D and 3-D,
any number of features. Left out: frequency band modulation of the input, softmax and tanh instead of the
kernel attention's sigmoid, and kernels made of only some of their frequencies.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.layers.attention import ATTENTION_PRECISION, global_average
from dyn.layers.convolution import ConvLayer
from dyn.layers.norms import LayerNorm
from dyn.layers.od_conv import ODAttention
from dyn.ops import planner
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.dynamic_conv import expand_over_space
from dyn.ops.lowerings import assemble_kernels, mix_kernels
from dyn.ops.sharding import automate_sharding

Array = jax.Array


class FDConv(ConvLayer):
    """Convolves each input with a kernel whose frequencies, and single numbers, are weighted.

        y = a_f * conv(x * a_c, a_l * a_s * sum_k a_w[k] W_k) + b

    where W_k is the part of one kernel that lies in the k-th of K groups of frequencies, low to high: for
    any K there are about as many parameters as in a static kernel. With
    z = StarReLU(norm(W_fc context)), StarReLU(v) = s ReLU(v)^2 + t, and at temperature T,

        a_c = 2 sigmoid((W_c z + b_c) / T)    input channels
        a_f = 2 sigmoid((W_f z + b_f) / T)    output filters; not for a depthwise convolution
        a_s = 2 sigmoid((W_s z + b_s) / T)    kernel positions; not for a 1x1 kernel
        a_w = 2 sigmoid((W_w z + b_w) / T)    groups of frequencies
        a_l = 2 sigmoid(conv1d(layernorm(GAP(x))))    every number of the kernel, if `local`

    All of them start at one: a new layer is the static convolution with the kernel `sum_k W_k`. The local
    attention is a 1-D convolution along the input channels, with one output for each kernel position and
    filter; it always looks at the layer's own input, not at the context.

    If samples are handled a few at a time ('samples', and 'auto' on one CPU device), the spectrum is
    weighted for each sample and transformed once. Otherwise the K kernels are stored at once, which takes as
    many numbers as K static kernels. `local` adds a kernel per sample, for which only 'taps' and 'patches'
    are efficient then, and on a TPU 'fused'.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        num_kernels: K, the number of groups of frequencies; None for the paper's 64, or for all
            frequencies of a kernel that has fewer (a 1x1 kernel from 3 features to 8 has 16).
        local: whether to add local attention.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.
        attention_norm: 'layer', 'batch' (the paper's) or 'none'; see
            `dyn.layers`.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: see `dyn.ops.dynamic_conv`; with `local`: 'samples', 'taps', 'patches', 'reference',
            'fused' or 'auto'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers.fd_conv import FDConv
        >>> layer = FDConv(features=32, kernel_size=(3, 3), num_kernels=8)
        >>> x = jnp.ones((2, 8, 8, 32))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 8, 8, 32)
        >>> variables["params"]["spectrum"].shape  # 9,408 numbers; the kernel has 9,216
        (96, 49, 2)
    """

    num_kernels: int | None = None
    local: bool = True
    reduction: float = 1 / 16
    min_squeeze: int = 16
    attention_norm: str = "layer"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what the global attention looks at, `[*batch, D]`; None for the mean of the inputs
                over space.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit the inputs, or there are
                more groups of frequencies than frequencies.
        """
        x, batch = self.flatten_inputs(inputs)
        spectrum = self.fourier_weights(x)
        dtype = float32_or_wider(x, spectrum)
        context = self.flatten_context(context, x, batch)
        shape = self.kernel_shape(x)
        num_kernels = self.count_groups(shape)
        channels, filters, taps, mix = FrequencyAttention(
            in_features=x.shape[-1],
            features=self.features,
            kernel_size=shape[:-2],
            groups=self.feature_group_count,
            num_kernels=num_kernels,
            **self.attention_fields(context.shape[-1], dtype),
        )(context)
        neighbours = local_kernel = None
        if self.local:
            neighbours, local_kernel = LocalAttention(
                num_taps=math.prod(shape[:-2]),
                features=self.features,
                dtype=dtype,
                param_dtype=self.param_dtype,
                name="local",
            )(global_average(x, x.ndim - 2, dtype))

        x = x.astype(self.conv_dtype(x))
        x = x * expand_over_space(channels, x)

        y = self.convolve_spectrum(x, spectrum, (mix, taps, neighbours), local_kernel)
        if filters is not None:
            y = y * expand_over_space(filters, y)
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def convolve_spectrum(
        self,
        x: Array,
        spectrum: Array,
        weights: tuple[Array | None, ...],
        local_kernel: Array | None,
    ) -> Array:
        """Convolves each sample with the kernel of its weighted spectrum.

        Args:
            x: `[B, *spatial, I]`.
            spectrum: the Fourier weights.
            weights: `(mix, taps, neighbours)`, `[B, ...]` or None each.
            local_kernel: with the neighbours, the arguments of `local_weights`; None without `local`.
        """
        shape = self.kernel_shape(x)
        num_kernels = self.count_groups(shape)
        in_chunks = self.lowering == "auto" and planner.why_no_loop() is None
        if in_chunks or self.lowering == "samples":
            groups = frequency_groups(shape, num_kernels)

            def transform(mix, taps, neighbours, real, imaginary, local_kernel) -> Array:
                w = mix[:, groups]
                real = w * lax.broadcast_to_rank(real, w.ndim)
                imaginary = w * lax.broadcast_to_rank(imaginary, w.ndim)
                kernel = self.apply_mask(_kernel_from_parts(real, imaginary, shape))
                return scale_kernels(kernel, taps, neighbours, local_kernel).astype(x.dtype)

            # Apart, because a gradient that sums over an axis of two numbers takes most of a step.
            shared = (spectrum[..., 0], spectrum[..., 1], local_kernel)
            return self.convolve_samples(x, transform, weights, shared, "samples")

        sample_lowering = self.lowering
        if self.local and self.lowering in ("auto", "fused"):
            sample_lowering = self.choose_sample_lowering(x, self.lowering)
        if sample_lowering == "fused":
            candidates = self.apply_mask(
                transform_by_products(spectrum, shape, num_kernels, x.dtype)
            )
            size = shape[:-2]

            def assemble(mix, taps, neighbours, candidates, local_kernel) -> Array:
                weights = jnp.broadcast_to(mix[:, None], (len(mix), math.prod(size), num_kernels))
                if taps is not None:
                    weights = weights * taps.reshape(len(mix), -1, 1)
                cells = candidates.reshape(num_kernels, -1, *shape[-2:])
                weights, scales = weights[:, :, None, None], (neighbours, local_kernel)
                kernel = assemble_kernels(weights, cells, x.dtype, True, scales)
                return kernel.reshape(-1, *shape)

            return self.convolve_samples(x, assemble, weights, (candidates, local_kernel), "fused")

        # The transform of a batch cannot be split over devices, but a mixture of kernels can.
        candidates = self.apply_mask(disjoint_kernels(spectrum, shape, num_kernels))
        if not self.local:
            mix, taps, _ = weights
            return self.convolve(x, candidates, mix, taps=taps, lowering=self.lowering)

        def mix_and_scale(mix, taps, neighbours, candidates, local_kernel) -> Array:
            kernel = mix_kernels(candidates, mix, None)
            return scale_kernels(kernel, taps, neighbours, local_kernel).astype(x.dtype)

        shared = (candidates, local_kernel)
        return self.convolve_samples(x, mix_and_scale, weights, shared, self.lowering)

    def count_groups(self, shape: Sequence[int]) -> int:
        """Returns K for a kernel of the shape `(*k, i, O)`."""
        if self.num_kernels is not None:
            return self.num_kernels
        rows, columns, _ = spectrum_shape(shape)
        return min(64, rows * columns)

    def fourier_weights(self, x: Array) -> Array:
        """Returns the parameter `spectrum`, `[R, C // 2 + 1, 2]`, in float32 or wider."""
        shape = self.kernel_shape(x)

        def init(key: Array, _: Sequence[int], dtype: Any) -> Array:
            # In float32 or wider, because there is no Fourier transform of bfloat16.
            kernel = self.kernel_init(key, shape, float32_or_wider(jnp.zeros((), dtype)))
            return kernel_to_spectrum(kernel).astype(dtype)

        spectrum = self.param("spectrum", init, spectrum_shape(shape), self.param_dtype)
        wide = float32_or_wider(spectrum)
        # The transform needs all of it on every device.
        return automate_sharding(lambda spectrum: spectrum.astype(wide), spectrum, axes=())


class FrequencyAttention(ODAttention):
    """The global attentions of FDConv (the paper's kernel spatial modulation), from a context `[B, D]`.

    They are those of ODConv with StarReLU after the squeeze, heads that start near zero, and a sigmoid from
    zero to two for every weight, including those of the groups of frequencies.
    """

    def squeeze_context(
        self, context: Array, precision: lax.Precision | None = ATTENTION_PRECISION
    ) -> Array:
        """Returns StarReLU(norm(W context)), `[B, squeezed]`."""
        z = super().squeeze_context(context, precision)
        # The initial values are those of the paper that introduces StarReLU (arXiv 2210.13452).
        constant = nn.initializers.constant
        scale = self.param("scale", constant(0.8944), (), self.param_dtype).astype(self.dtype)
        shift = self.param("shift", constant(-0.4472), (), self.param_dtype).astype(self.dtype)
        return scale * z**2 + shift

    def apply_head(self, name: str, z: Array, features: int, **fields: Any) -> Array:
        """Computes logits that are close to zero at the start, so that all weights start at one."""
        return super().apply_head(
            name, z, features, kernel_init=nn.initializers.normal(1e-6), **fields
        )

    def gate(self, logits: Array) -> Array:
        """Turns logits into independent weights from zero to two."""
        return 2 * nn.sigmoid(logits)

    def weight_candidates(self, logits: Callable[[str, int], Array]) -> Array:
        """Returns independent weights of the groups of frequencies."""
        return self.gate(logits("kernel", self.num_kernels))


class LocalAttention(nn.Module):
    """Makes the arguments of `local_weights` from one number per channel, `[B, I]`.

    Returns `(neighbours [B, I, N], kernel [N, T, O])`: for each channel the N channels around it, after a
    layer norm, and the kernel of the convolution along the channels. N, an odd number, is about
    log2(I) / 2.
    """

    num_taps: int
    features: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, pooled: Array) -> tuple[Array, Array]:
        """Collects the neighbours of each channel."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        in_features = pooled.shape[-1]
        number = round(math.log2(in_features) / 2 + 0.5) // 2 * 2 + 1
        v = LayerNorm(name="norm", **types)(pooled)
        v = jnp.pad(v, ((0, 0), (number // 2, number // 2)))
        neighbours = jnp.stack([v[:, n : n + in_features] for n in range(number)], axis=-1)
        kernel = _Kernel(
            (number, 1, self.num_taps * self.features), self.param_dtype, name="conv"
        )()

        def split(kernel: Array) -> Array:
            return kernel.reshape(number, self.num_taps, self.features).astype(self.dtype)

        return neighbours, automate_sharding(split, kernel, axes=())


class _Kernel(nn.Module):
    """The parameter `kernel` of a convolution that another function computes."""

    shape: tuple[int, ...]
    param_dtype: Any

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", nn.initializers.constant(1e-6), self.shape, self.param_dtype)


def scale_kernels(
    kernels: Array, taps: Array | None, neighbours: Array | None, local_kernel: Array | None
) -> Array:
    """Scales the kernels `[b, *k, i, O]` of b samples by `taps [b, *k]` and by `local_weights`."""
    if taps is not None:
        kernels = kernels * taps[..., None, None]
    if neighbours is not None and local_kernel is not None:
        # Local weights are as large as the kernels, and made only when these are.
        kernels = kernels * local_weights(neighbours, local_kernel, kernels.shape[1:])
    return kernels


def local_weights(neighbours: Array, kernel: Array, shape: Sequence[int]) -> Array:
    """Returns the weight of every number of each sample's kernel, `[b, *k, i, O]`.

        2 sigmoid(sum_n neighbours[b, i, n] kernel[n, t, o])

    Args:
        neighbours: `[b, I, N]`, of any b samples.
        kernel: `[N, T, O]`.
        shape: shape of one kernel, `(*k, i, O)`; the outputs of each of the I / i groups have weights for
            the inputs of their group.
    """
    *size, i, o = shape
    groups = neighbours.shape[1] // i
    grouped = neighbours.reshape(-1, 1, groups, i, neighbours.shape[-1])
    # [T, groups, N, O / groups]
    kernel = jnp.moveaxis(kernel.reshape(len(kernel), -1, groups, o // groups), 0, 2)
    v = jnp.matmul(grouped, kernel, precision=ATTENTION_PRECISION)  # [b, T, groups, i, O / groups]
    v = jnp.moveaxis(v, 2, 3).reshape(-1, *size, i, o)
    return 2 * nn.sigmoid(v)


def kernel_to_spectrum(kernel: Array) -> Array:
    """Returns the Fourier weights of a kernel `[*k, i, O]`, real and imaginary: `[R, C // 2 + 1, 2]`.

    They are the orthonormal two-dimensional transform of the kernel as a matrix. Its R rows are the filters
    and, within each, the first kernel axis; its C columns are the input channels and the other kernel axes.
    (The only axis of a 1-D kernel is in the columns.)
    """
    f = jnp.fft.rfft2(_kernel_to_matrix(kernel), norm="ortho")
    return jnp.stack([f.real, f.imag], axis=-1)


def spectrum_to_kernel(spectrum: Array, shape: Sequence[int]) -> Array:
    """Inverts `kernel_to_spectrum`: `[..., R, C // 2 + 1, 2]` to `[..., *shape]`."""
    return _kernel_from_parts(spectrum[..., 0], spectrum[..., 1], shape)


def _kernel_from_parts(real: Array, imaginary: Array, shape: Sequence[int]) -> Array:
    f = jax.lax.complex(real, imaginary)
    matrix = jnp.fft.irfft2(f, s=_matrix_shape(shape), norm="ortho")
    *size, i, o = shape
    first, rest = _row_column_taps(size)
    leading = matrix.shape[:-2]
    kernel = matrix.reshape(*leading, o, first, i, rest)
    kernel = jnp.moveaxis(kernel, (-4, -2), (-1, -2))  # [..., first, rest, i, O]
    return kernel.reshape(*leading, *shape)


def disjoint_kernels(spectrum: Array, shape: Sequence[int], num_groups: int) -> Array:
    """Returns the part of the kernel in each group of frequencies, `[K, *shape]`; they add up to it."""
    groups = jnp.asarray(frequency_groups(shape, num_groups))[..., None]
    numbers = jnp.arange(num_groups, dtype=groups.dtype).reshape(-1, 1, 1, 1)
    in_group = lax.broadcast_to_rank(groups, 4) == numbers
    zeros = lax.broadcast_to_rank(jnp.zeros_like(spectrum), 4)
    parts = jnp.where(in_group, lax.broadcast_to_rank(spectrum, 4), zeros)
    return spectrum_to_kernel(parts, shape)


def transform_by_products(
    spectrum: Array, shape: Sequence[int], num_groups: int, dtype: jnp.dtype
) -> Array:
    """Returns `disjoint_kernels` by matrix products, in float32.

    For a TPU, which has no unit for Fourier transforms: XLA's own reads and writes the memory many times.

    Args:
        spectrum, shape, num_groups: as in `disjoint_kernels`.
        dtype: of the kernels that are made of the result; the products are as precise.
    """
    *size, i, o = shape
    first, rest = _row_column_taps(size)
    (rows, columns), half = _matrix_shape(shape), spectrum.shape[1]
    exact = dtype != jnp.bfloat16
    wide = jnp.float32 if exact else dtype
    precision = lax.Precision.HIGHEST if exact else None

    def make_waves(frequencies: int, length: int) -> tuple[Array, Array]:
        """Returns cosines and sines of 2 pi f n / length, `[f, n]`; the integers are exact."""
        turns = jnp.arange(frequencies)[:, None] * jnp.arange(length)[None] % length
        angle = turns.astype(jnp.float32) * (math.tau / length)
        scale = 1 / math.sqrt(length)
        return jnp.cos(angle) * scale, jnp.sin(angle) * scale

    cos, sin = make_waves(rows, rows)
    # [from real or imaginary, frequency, to real or imaginary, o, first]
    down = jnp.stack([jnp.stack([cos, sin], 1), jnp.stack([-sin, cos], 1)])
    down = down.reshape(2, rows, 2, o, first)
    cos, sin = make_waves(half, columns)
    # All but the mean, and the highest frequency of an even number, stand for two.
    twice = jnp.where((jnp.arange(half) * 2) % columns == 0, 1.0, 2.0)[:, None]
    across = jnp.stack([cos * twice, -sin * twice]).reshape(2, half, i, rest)

    groups = jnp.asarray(frequency_groups(shape, num_groups))
    numbers = jnp.arange(num_groups, dtype=groups.dtype)[:, None, None]
    parts = jnp.where(groups == numbers, jnp.moveaxis(spectrum, -1, 0)[:, None], 0)
    waves = jnp.einsum(
        "qmpof,qkmg->pfokg", down.astype(wide), parts.astype(wide), precision=precision
    )
    kernels = jnp.einsum(
        "pfokg,pgir->kfrio",
        waves.astype(wide),
        across.astype(wide),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return kernels.reshape(num_groups, *shape)


def spectrum_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the shape of the Fourier weights of a kernel of the shape `(*k, i, O)`."""
    rows, columns = _matrix_shape(shape)
    return rows, columns // 2 + 1, 2


def frequency_groups(shape: Sequence[int], num_groups: int) -> np.ndarray:
    """Returns the group of each Fourier weight of a kernel of the shape `(*k, i, O)`: `[R, C // 2 + 1]`.

    The frequencies (f, g) of the matrix are sorted by sqrt(f^2 + g^2) and cut into groups of equal size,
    as far as possible. Group 0 is the lowest.

    Raises:
        ValueError: if there are more groups than frequencies.
    """
    rows, columns = _matrix_shape(shape)
    radius = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    if not 1 <= num_groups <= radius.size:
        raise ValueError(
            f"num_kernels={num_groups} must be from 1 to {radius.size}, the number of frequencies of a "
            f"kernel of shape {tuple(shape)}."
        )
    order = np.argsort(radius, axis=None, kind="stable")
    groups = np.empty(radius.size, np.uint8 if num_groups <= 256 else np.int32)
    for number, members in enumerate(np.array_split(order, num_groups)):
        groups[members] = number
    return groups.reshape(radius.shape)


def _row_column_taps(size: Sequence[int]) -> tuple[int, int]:
    """Returns the numbers of kernel positions in the rows and in the columns of the matrix."""
    return (1, size[0]) if len(size) == 1 else (size[0], math.prod(size[1:]))


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    *size, i, o = shape
    first, rest = _row_column_taps(size)
    return o * first, i * rest


def _kernel_to_matrix(kernel: Array) -> Array:
    *size, i, o = kernel.shape
    first, rest = _row_column_taps(size)
    return kernel.reshape(first, rest, i, o).transpose(3, 0, 2, 1).reshape(o * first, i * rest)
