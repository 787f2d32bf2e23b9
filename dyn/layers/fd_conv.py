"""Frequency dynamic convolution: candidate kernels that divide one kernel's spectrum among them.

Chen, Gu, Li, Yan, Fu: Frequency Dynamic Convolution for Dense Image Prediction. CVPR 2025.
https://arxiv.org/abs/2503.18783

Deviations from the authors' code: the filter head starts near zero, like the other heads (the code checks a
misspelt attribute, so that its layer does not start as the static convolution); kernels made of their lowest
frequencies have the usual size (the code forgets their factor); several spectra start different and add up to
one kernel of the usual size (in the code they are copies, and the kernel is R times too large). The Fourier
weights are those of the orthonormal transform, so that they have the kernel's scale. Extensions: groups of
features, 1-D and 3-D, odd sizes, any size of kernel, and groups of frequencies that differ by one in size if
they cannot be equal. Left out: a kernel as the parameter, transformed at each call, which computes the same.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.layers.attention import ATTENTION_PRECISION, drop_axis_names, global_average
from dyn.layers.band_modulation import BandModulation
from dyn.layers.convolution import ConvLayer, resolve_kernel_size
from dyn.layers.norms import LayerNorm
from dyn.layers.od_conv import ODAttention
from dyn.ops import planner, platforms
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.dynamic_conv import expand_over_space
from dyn.ops.fourier import invert_by_products
from dyn.ops.lowerings import assemble_kernels, mix_kernels
from dyn.ops.sharding import automate_sharding

Array = jax.Array


class FDConv(ConvLayer):
    """Convolves each input with a kernel whose frequencies, and single numbers, are weighted.

        y = a_f * conv(bands(x) * a_c, a_l * a_s * sum_k a_w[k] W_k) + b

    where W_k is the part of one kernel that lies in the k-th of K groups of frequencies, low to high: for
    any K there are about as many parameters as in a static kernel. With
    z = StarReLU(norm(W_fc context)), StarReLU(v) = s ReLU(v)^2 + t, and at temperature T,

        a_c = 2 sigmoid((W_c z + b_c) / T)    input channels
        a_f = 2 sigmoid((W_f z + b_f) / T)    output filters; not for a depthwise convolution
        a_s = 2 sigmoid((W_s z + b_s) / T)    kernel positions; not for a 1x1 kernel
        a_w = 2 sigmoid((W_w z + b_w) / T)    groups of frequencies; not for a single one
        a_l = 2 sigmoid(conv1d(layernorm(GAP(x))))    every number of the kernel, if `local`

    The input of 3x3 kernels passes through `dyn.layers.band_modulation.BandModulation`, which weights its
    octaves at each position. All weights start at one: a new layer is the static convolution with the kernel
    `sum_k W_k`. The local attention is a 1-D convolution along the input channels, with one output for each
    kernel position and filter; like the modulation of bands, it always looks at the layer's own input, not
    at the context.

    *Where the authors do not use it, this is the plain convolution*, with a parameter `kernel`: for 16 or
    fewer input or output features, and for kernels of other sizes than 1 and 3. `min_features=0` and
    `kernel_sizes=None` lift the two rules.

    If samples are handled a few at a time ('samples', and 'auto' on one CPU device), and in ONNX files, the
    spectrum is weighted for each sample and transformed once. Otherwise the K kernels are stored at once,
    which takes as many numbers as K static kernels. `local` adds a kernel per sample, for which only 'taps'
    and 'patches' are efficient then, and on a TPU 'fused'.

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
            'fused' or 'auto'. The plain convolution has its own.
        min_features: the layer is plain unless it has more input and more output features than this.
        kernel_sizes: sizes that each axis of the kernel may have, else the layer is plain; None for any.
        bands: whether to modulate the bands of inputs.
        band_sizes: sizes that each axis of the kernel must have for that.
        strided_bands: whether to modulate the input of layers that stride whatever their kernel's size, too.
        band_divisors: bands end at 0.5 / d of the sampling frequency.
        band_groups: number of maps of each band; more than 64 stand for one per channel.
        band_activation: 'sigmoid', 'tanh' or 'softmax' (over the maps), as in `BandModulation`.
        weigh_lowest_band: whether to weight what lies below all bands, too.
        activation: 'sigmoid' as above; 'tanh' for 1 + tanh; 'softmax' for K softmax, which only the weights
            of the groups can have, so `only_groups` must be set.
        local_activation: 'sigmoid' or 'tanh', of the local attention.
        largest_weight: the 2 of a_c, a_f, a_s and a_l (for 'sigmoid'). All start at half of it.
        kernel_temperature: temperature of a_w, relative to T.
        only_groups: whether to leave out a_c, a_f and a_s.
        num_spectra: R, the number of spectra (the authors' `param_ratio`): there are R times as many
            Fourier weights, and R K weights a_w.
        kept_frequencies: share of the frequencies that the kernel has, the lowest (the authors'
            `param_reduction`); the others are zero.

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
    min_features: int = 16
    kernel_sizes: Sequence[int] | None = (1, 3)
    bands: bool = True
    band_sizes: Sequence[int] = (3,)
    strided_bands: bool = False
    band_divisors: Sequence[int] = (2, 4, 8)
    band_groups: int = 1
    band_activation: str = "sigmoid"
    weigh_lowest_band: bool = False
    activation: str = "sigmoid"
    local_activation: str = "sigmoid"
    largest_weight: float = 2.0
    kernel_temperature: float = 1.0
    only_groups: bool = False
    num_spectra: int = 1
    kept_frequencies: float = 1.0

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
            ValueError: if the kernel, the context or the groups do not fit the inputs, there are more
                groups of frequencies than frequencies, or an activation is unknown.
        """
        x, batch = self.flatten_inputs(inputs)
        context = self.flatten_context(context, x, batch)
        shape = self.kernel_shape(x)
        if self.is_plain(x):
            kernel = self.apply_mask(
                self.param("kernel", self.kernel_init, shape, self.param_dtype)
            )
            y = self.add_bias(self.convolve(x.astype(self.conv_dtype(x)), kernel[None]))
            return y.reshape(*batch, *y.shape[1:])
        spectrum = self.fourier_weights(x)
        dtype = float32_or_wider(x, spectrum)
        channels, filters, taps, mix = FrequencyAttention(
            in_features=x.shape[-1],
            features=self.features,
            kernel_size=shape[:-2],
            groups=self.feature_group_count,
            num_kernels=self.num_spectra * self.count_groups(shape),
            activation=self.activation,
            largest_weight=self.largest_weight,
            kernel_temperature=self.kernel_temperature,
            only_groups=self.only_groups,
            **self.attention_fields(context.shape[-1], dtype),
        )(context)
        if mix is None:  # a single group
            mix = jnp.ones_like(context[:, :1], dtype)
        neighbours = local_kernel = None
        if self.local:
            neighbours, local_kernel = LocalAttention(
                num_taps=math.prod(shape[:-2]),
                features=self.features,
                activation=self.local_activation,
                dtype=dtype,
                param_dtype=self.param_dtype,
                name="local",
            )(global_average(x, x.ndim - 2, dtype))
            if self.local_activation == "sigmoid":
                spectrum = spectrum * (self.largest_weight / 2)  # of what `local_weights` has 2

        # After the averages that attention looks at.
        x = self.modulate(x, dtype).astype(self.conv_dtype(x))
        if channels is not None:
            x = x * expand_over_space(channels, x)
        y = self.convolve_spectrum(x, spectrum, (mix, taps, neighbours), local_kernel)
        if filters is not None:
            y = y * expand_over_space(filters, y)
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def is_plain(self, x: Array) -> bool:
        """Returns whether the layer is the plain convolution for these inputs."""
        size, sizes = resolve_kernel_size(self.kernel_size, x), self.kernel_sizes
        other_size = sizes is not None and any(k not in sizes for k in size)
        return other_size or min(x.shape[-1], self.features) <= self.min_features

    def modulate(self, x: Array, dtype: jnp.dtype) -> Array:
        """Returns the inputs with their bands weighted, if this kernel's are."""
        strided = any(stride > 1 for stride in self.resolve_geometry(x).strides)
        size = resolve_kernel_size(self.kernel_size, x)
        other_size = any(k not in self.band_sizes for k in size)
        if not self.bands or (other_size and not (strided and self.strided_bands)):
            return x
        return BandModulation(
            divisors=self.band_divisors,
            groups=self.band_groups,
            activation=self.band_activation,
            weigh_rest=self.weigh_lowest_band,
            dtype=dtype,
            param_dtype=self.param_dtype,
            name="bands",
        )(x)

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
        for_onnx = platforms.find_platform() == "onnx"
        if in_chunks or for_onnx or self.lowering == "samples":
            return self.convolve_weighted_spectra(
                *(x, spectrum, weights, local_kernel),
                lowering=self.lowering if for_onnx else "samples",
                by_products=for_onnx,
            )

        sample_lowering = self.lowering
        if self.local and self.lowering in ("auto", "fused"):
            sample_lowering = self.choose_sample_lowering(x, self.lowering)
        if sample_lowering == "fused":
            candidates = self.apply_mask(
                transform_by_products(spectrum, shape, num_kernels, x.dtype, self.kept_frequencies)
            )
            size = shape[:-2]

            def assemble(mix, taps, neighbours, candidates, local_kernel) -> Array:
                weights = jnp.broadcast_to(mix[:, None], (len(mix), math.prod(size), mix.shape[1]))
                if taps is not None:
                    weights = weights * taps.reshape(len(mix), -1, 1)
                cells = candidates.reshape(len(candidates), -1, *shape[-2:])
                weights, scales = weights[:, :, None, None], (neighbours, local_kernel)
                kernel = assemble_kernels(weights, cells, x.dtype, True, scales)
                return kernel.reshape(-1, *shape)

            return self.convolve_samples(x, assemble, weights, (candidates, local_kernel), "fused")

        # The transform of a batch cannot be split over devices, but a mixture of kernels can.
        candidates = disjoint_kernels(spectrum, shape, num_kernels, self.kept_frequencies)
        candidates = self.apply_mask(candidates)
        if not self.local:
            mix, taps, _ = weights
            return self.convolve(x, candidates, mix, taps=taps, lowering=self.lowering)

        def mix_and_scale(mix, taps, neighbours, candidates, local_kernel) -> Array:
            kernel = mix_kernels(candidates, mix, None)
            return scale_kernels(kernel, taps, neighbours, local_kernel).astype(x.dtype)

        shared = (candidates, local_kernel)
        return self.convolve_samples(x, mix_and_scale, weights, shared, self.lowering)

    def convolve_weighted_spectra(
        self,
        x: Array,
        spectrum: Array,
        weights: tuple[Array | None, ...],
        local_kernel: Array | None,
        *,
        lowering: str,
        by_products: bool,
    ) -> Array:
        """Computes `convolve_spectrum` with one inverse transform for each sample.

        Args:
            x, spectrum, weights, local_kernel: as there.
            lowering: of `convolve_samples`.
            by_products: whether to transform by matrix products.
        """
        shape = self.kernel_shape(x)
        groups = frequency_groups(shape, self.count_groups(shape), self.kept_frequencies)
        if spectrum.ndim == 4:  # of a ratio: the weights of a spectrum are next to each other
            groups = groups + (groups.max() + 1) * np.arange(len(spectrum))[:, None, None]
        # A frequency without a group has no weight. onnxruntime has no small integers for indices.
        groups = np.maximum(groups, 0).astype(np.int32 if by_products else groups.dtype)

        def transform(mix, taps, neighbours, real, imaginary, local_kernel) -> Array:
            w = mix[:, groups]
            real = w * lax.broadcast_to_rank(real, w.ndim)
            imaginary = w * lax.broadcast_to_rank(imaginary, w.ndim)
            if w.ndim == 4:
                real, imaginary = jnp.sum(real, 1), jnp.sum(imaginary, 1)
            kernel = self.apply_mask(_kernel_from_parts(real, imaginary, shape, by_products))
            return scale_kernels(kernel, taps, neighbours, local_kernel).astype(x.dtype)

        # Apart, because a gradient that sums over an axis of two numbers takes most of a step.
        shared = (spectrum[..., 0], spectrum[..., 1], local_kernel)
        return self.convolve_samples(x, transform, weights, shared, lowering)

    def count_groups(self, shape: Sequence[int]) -> int:
        """Returns K for a kernel of the shape `(*k, i, O)`."""
        if self.num_kernels is not None:
            return self.num_kernels
        return min(64, count_kept(shape, self.kept_frequencies))

    def fourier_weights(self, x: Array) -> Array:
        """Returns the parameter `spectrum` with all frequencies, `[*R, rows, C // 2 + 1, 2]`.

        It is in float32 or wider. The parameter has only the kept frequencies, from low to high,
        `[*R, kept, 2]`, if these are not all. There is no axis R for a single spectrum.

        Raises:
            ValueError: if the number of spectra or the share of frequencies makes no sense.
        """
        if self.num_spectra < 1 or not 0 < self.kept_frequencies <= 1:
            raise ValueError(
                f"num_spectra={self.num_spectra} must be 1 or more, and kept_frequencies="
                f"{self.kept_frequencies} more than 0 and at most 1."
            )
        shape, number = self.kernel_shape(x), self.num_spectra
        order = frequency_order(shape)
        kept = order[: count_kept(shape, self.kept_frequencies)]
        all_kept = len(kept) == len(order)
        # The sum of independent spectra, each of fewer frequencies, has the size of one kernel.
        scale = math.sqrt(len(order) / len(kept) / number)

        def init(key: Array, _: Sequence[int], dtype: Any) -> Array:
            # In float32 or wider, because there is no Fourier transform of bfloat16.
            wide = float32_or_wider(jnp.zeros((), dtype))
            keys = [key] if number == 1 else jax.random.split(key, number)
            kernels = [drop_axis_names(self.kernel_init(k, shape, wide)) for k in keys]
            spectra = [kernel_to_spectrum(kernel) for kernel in kernels]
            if not all_kept:
                spectra = [spectrum.reshape(-1, 2)[kept] for spectrum in spectra]
            spectra = jnp.stack(spectra) if number > 1 else spectra[0]
            return (scale * spectra).astype(dtype)

        stored = spectrum_shape(shape) if all_kept else (len(kept), 2)
        stored = stored if number == 1 else (number, *stored)
        spectrum = self.param("spectrum", init, stored, self.param_dtype)
        wide = float32_or_wider(spectrum)

        def spread(spectrum: Array) -> Array:
            spectrum = spectrum.astype(wide)
            if all_kept:
                return spectrum
            places = np.full(len(order), len(kept))
            places[kept] = np.arange(len(kept))
            padding = [(0, 0)] * (spectrum.ndim - 2) + [
                (0, 1),
                (0, 0),
            ]  # with a zero for the others
            spread = jnp.take(jnp.pad(spectrum, padding), places, axis=-2)
            return spread.reshape(*spectrum.shape[:-2], *spectrum_shape(shape))

        # The transform needs all of it on every device.
        return automate_sharding(spread, spectrum, axes=())


class FrequencyAttention(ODAttention):
    """The global attentions of FDConv (the paper's kernel spatial modulation), from a context `[B, D]`.

    They are those of ODConv with StarReLU after the squeeze, heads that start near zero, and activations
    that give one for zero. The fields are those of `FDConv`, but K counts the groups of all spectra.
    """

    activation: str = "sigmoid"
    largest_weight: float = 2.0
    kernel_temperature: float = 1.0
    only_groups: bool = False

    def squeeze_context(
        self, context: Array, precision: lax.Precision | None = ATTENTION_PRECISION
    ) -> Array:
        """Returns StarReLU(norm(W context)), `[B, squeezed]`."""
        if self.activation not in ("sigmoid", "tanh", "softmax"):
            raise ValueError(
                f"activation={self.activation!r} is unknown: write 'sigmoid', 'tanh' or 'softmax'."
            )
        if self.activation == "softmax" and not self.only_groups:
            raise ValueError(
                "activation='softmax' is defined for the groups of frequencies only: write only_groups=True, "
                "or another activation."
            )
        z = super().squeeze_context(context, precision)
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale = self.param("scale", ones, (), self.param_dtype).astype(self.dtype)
        shift = self.param("shift", zeros, (), self.param_dtype).astype(self.dtype)
        return scale * z**2 + shift

    def list_parts(self) -> tuple[str, ...]:
        """Returns the parts of the convolution that are weighted beside the groups of frequencies."""
        return () if self.only_groups else super().list_parts()

    def apply_head(self, name: str, z: Array, features: int, **fields: Any) -> Array:
        """Computes logits that are close to zero at the start, so that all weights start at one."""
        return super().apply_head(
            name, z, features, kernel_init=nn.initializers.normal(1e-6), **fields
        )

    def gate(self, logits: Array) -> Array:
        """Turns logits into independent weights of features or positions."""
        if self.activation == "tanh":
            return 1 + jnp.tanh(logits)
        return self.largest_weight * nn.sigmoid(logits)

    def weight_candidates(self, logits: Callable[[str, int], Array]) -> Array | None:
        """Returns weights of the groups of frequencies, with mean one for a softmax; None for one group."""
        if self.num_kernels == 1:
            return None
        v = logits("kernel", self.num_kernels) / self.kernel_temperature
        match self.activation:
            case "softmax":
                return self.num_kernels * nn.softmax(v)
            case "tanh":
                return 1 + jnp.tanh(v)
        return 2 * nn.sigmoid(v)


class LocalAttention(nn.Module):
    """Makes the arguments of `local_weights` from one number per channel, `[B, I]`.

    Returns `(neighbours [B, I, N], kernel [N, T, O])`: for each channel the N channels around it, after a
    layer norm, and the kernel of the convolution along the channels. N, an odd number, is about
    log2(I) / 2.
    """

    num_taps: int
    features: int
    activation: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, pooled: Array) -> tuple[Array, Array]:
        """Collects the neighbours of each channel.

        Raises:
            ValueError: for an unknown activation.
        """
        if self.activation not in ("sigmoid", "tanh"):
            raise ValueError(
                f"local_activation={self.activation!r} is unknown: write 'sigmoid' or 'tanh'."
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        in_features = pooled.shape[-1]
        number = round(math.log2(in_features) / 2 + 0.5) // 2 * 2 + 1
        v = LayerNorm(name="norm", **types)(pooled)
        if self.activation == "tanh":
            v = 2 * v  # 1 + tanh(v) = 2 sigmoid(2 v)
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


def _kernel_from_parts(
    real: Array, imaginary: Array, shape: Sequence[int], by_products: bool = False
) -> Array:
    rows, columns = _matrix_shape(shape)
    if by_products:
        matrix = invert_by_products(real, imaginary, columns)
    else:
        f = jax.lax.complex(real, imaginary)
        matrix = jnp.fft.irfft2(f, s=(rows, columns), norm="ortho")
    *size, i, o = shape
    first, rest = _row_column_taps(size)
    leading = matrix.shape[:-2]
    kernel = matrix.reshape(*leading, o, first, i, rest)
    kernel = jnp.moveaxis(kernel, (-4, -2), (-1, -2))  # [..., first, rest, i, O]
    return kernel.reshape(*leading, *shape)


def disjoint_kernels(
    spectrum: Array, shape: Sequence[int], num_groups: int, kept: float = 1.0
) -> Array:
    """Returns the part of the kernel in each group of frequencies, `[K, *shape]`; they add up to it.

    Args:
        spectrum: `[R, C // 2 + 1, 2]`, or several of them, `[n, R, C // 2 + 1, 2]`, for n K kernels.
        shape: shape of the kernel, `(*k, i, O)`.
        num_groups: K.
        kept: share of the frequencies that are in a group.
    """
    groups = jnp.asarray(frequency_groups(shape, num_groups, kept))[..., None]
    numbers = jnp.arange(num_groups, dtype=groups.dtype).reshape(-1, 1, 1, 1)
    in_group = lax.broadcast_to_rank(groups, 4) == numbers
    spectra = spectrum.reshape(-1, 1, *spectrum.shape[-3:])
    parts = jnp.where(in_group[None], spectra, jnp.zeros_like(spectra))
    return spectrum_to_kernel(parts.reshape(-1, *parts.shape[2:]), shape)


def transform_by_products(
    spectrum: Array, shape: Sequence[int], num_groups: int, dtype: jnp.dtype, kept: float = 1.0
) -> Array:
    """Returns `disjoint_kernels` by matrix products, in float32.

    For a TPU, which has no unit for Fourier transforms: XLA's own reads and writes the memory many times.
    The transform of the rows, of which there are n = k O for k kernel positions of the first axis, is one of
    length k before one of length O (see `dyn.ops.fourier`). With the frequency f = O f' + f'' and the row
    k o + t of the filter o,

        exp(2 pi i f (k o + t) / n) = exp(2 pi i f t / n) exp(2 pi i f'' o / O)

    The first factor is applied to the spectrum, before it is divided into groups.

    Args:
        spectrum, shape, num_groups, kept: as in `disjoint_kernels`.
        dtype: of the kernels that are made of the result; the products are as precise.
    """
    *size, i, o = shape
    first, rest = _row_column_taps(size)
    (rows, columns), half = _matrix_shape(shape), spectrum.shape[-2]
    exact = dtype != jnp.bfloat16
    wide = jnp.float32 if exact else dtype
    precision = lax.Precision.HIGHEST if exact else None

    def make_waves(turns: Array, length: int, scale: float = 1.0) -> tuple[Array, Array]:
        """Returns scaled cosines and sines of 2 pi turns / length; the integers are exact."""
        angle = (turns % length).astype(jnp.float32) * (math.tau / length)
        return jnp.cos(angle) * scale, jnp.sin(angle) * scale

    # The axes are q and p (real and imaginary, before and after), n (f'), m (f''), f (positions t), and g, of
    # the frequencies of the columns.
    taps, low = jnp.arange(first), jnp.arange(o)
    frequencies = o * taps[:, None] + low[None]
    cos, sin = make_waves(taps[:, None, None] * frequencies[None], rows)  # [f, n, m]
    cos, sin = cos[..., None], sin[..., None]
    real, imaginary = jnp.moveaxis(spectrum.reshape(-1, 1, first, o, half, 2), -1, 0)
    cos, sin = (lax.broadcast_to_rank(wave, real.ndim) for wave in (cos, sin))
    turned = jnp.stack([real * cos - imaginary * sin, real * sin + imaginary * cos])
    groups = jnp.asarray(frequency_groups(shape, num_groups, kept)).reshape(first, o, half)
    numbers = jnp.arange(num_groups, dtype=groups.dtype).reshape(-1, 1, 1, 1)
    parts = jnp.zeros((), turned.dtype)
    for n in range(first):
        in_group = groups[n][None, None] == numbers  # [K, 1, m, g]
        parts = parts + jnp.where(in_group[None, None], turned[:, :, None, :, n], 0)
    parts = parts.reshape(2, -1, first, o, half)

    cos, sin = make_waves(low[:, None] * low[None], o, 1 / math.sqrt(rows))
    down = jnp.stack([jnp.stack([cos, sin], 1), jnp.stack([-sin, cos], 1)])
    turns = jnp.arange(half)[:, None] * jnp.arange(columns)[None]
    cos, sin = make_waves(turns, columns, 1 / math.sqrt(columns))
    # All but the mean, and the highest frequency of an even number, stand for two.
    twice = jnp.where((jnp.arange(half) * 2) % columns == 0, 1.0, 2.0)[:, None]
    across = jnp.stack([cos * twice, -sin * twice])
    waves = jnp.einsum(
        "qmpo,qkfmg->pfokg", down.astype(wide), parts.astype(wide), precision=precision
    )
    kernels = jnp.einsum(
        "pfokg,pgir->kfrio",
        waves.astype(wide),
        across.reshape(2, half, i, rest).astype(wide),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return kernels.reshape(-1, *shape)


def spectrum_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the shape of the Fourier weights of a kernel of the shape `(*k, i, O)`."""
    rows, columns = _matrix_shape(shape)
    return rows, columns // 2 + 1, 2


def frequency_groups(shape: Sequence[int], num_groups: int, kept: float = 1.0) -> np.ndarray:
    """Returns the group of each Fourier weight of a kernel of the shape `(*k, i, O)`: `[R, C // 2 + 1]`.

    The frequencies are sorted as in `frequency_order` and the kept ones cut into groups of equal size, as
    far as possible. Group 0 is the lowest; -1 stands for none.

    Raises:
        ValueError: if there are more groups than frequencies.
    """
    number = count_kept(shape, kept)
    if not 1 <= num_groups <= number:
        raise ValueError(
            f"num_kernels={num_groups} must be from 1 to {number}, the number of frequencies of a "
            f"kernel of shape {tuple(shape)}."
        )
    order = frequency_order(shape)
    groups = np.full(len(order), -1, np.int16 if num_groups < 2**15 else np.int32)
    for group, members in enumerate(np.array_split(order[:number], num_groups)):
        groups[members] = group
    return groups.reshape(spectrum_shape(shape)[:2])


def frequency_order(shape: Sequence[int]) -> np.ndarray:
    """Returns the flat indices of the Fourier weights of a kernel, by sqrt(f^2 + g^2) from low to high.

    Rounding decides between frequencies of the same distance: it is done as by torch in float32 with a
    fused multiply-add and a stable sort, because the groups of published kernels are not in their files.
    """
    rows, columns = _matrix_shape(shape)
    f = np.round(np.fft.fftfreq(rows) * rows).astype(np.float32) * np.float32(1 / rows)
    g = np.arange(columns // 2 + 1, dtype=np.float32) * np.float32(1 / columns)
    squares = (f * f).astype(np.float64)[:, None] + g.astype(np.float64) ** 2
    return np.argsort(np.sqrt(squares.astype(np.float32)), axis=None, kind="stable")


def count_kept(shape: Sequence[int], kept: float) -> int:
    """Returns how many frequencies a share of those of a kernel of the shape `(*k, i, O)` is: 1 or more."""
    rows, columns, _ = spectrum_shape(shape)
    return max(1, int(rows * columns * kept))


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
