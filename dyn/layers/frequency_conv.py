"""Frequency dynamic convolution: a mixture of kernels for each frequency, or each moment, of a spectrogram.

Nam, Kim, Ko, Park: Frequency Dynamic Convolution: Frequency-Adaptive Pattern Recognition for Sound Event
Detection. Interspeech 2022. https://arxiv.org/abs/2203.15296 (FDY, and its twin in time, TDY)
Nam, Kim, Min, Lee, Park: Diversifying and Expanding Frequency-Adaptive Convolution Kernels for Sound Event
Detection. Interspeech 2024. https://arxiv.org/abs/2406.05341 (dilated, DFD)
Nam, Park: Pushing the Limit of Sound Event Detection with Multi-Dilated Frequency Dynamic Convolution. 2024.
https://arxiv.org/abs/2406.13312 (partial, PFD, and multi-dilated, MDFD)

Deviations from the authors' code: the norm of attention is a layer norm unless `attention_norm='batch'`; the
temperature, 31 there for the whole training, is annealed like that of the other layers; attention's weights
start normal for a fan out without its window; biases are initialised; 1-D and 3-D inputs, any padding, stride
and dilation of `nn.Conv`, groups, a mask, and a context from elsewhere.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import ATTENTION_PRECISION, MixtureAttention
from dyn.layers.convolution import ConvLayer
from dyn.layers.static_conv import Conv
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.dynamic_conv import convolve_with_geometry
from dyn.ops.geometry import Geometry, per_axis
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


class FrequencyDynamicConv(ConvLayer):
    """Convolves each frequency of a spectrogram with its own mixture of K kernels and K biases (FDY).

        y[f, t] = conv(x, sum_k a[f, k] W_k)[f, t] + sum_k a[f, k] b_k
        a[f] = softmax((V ReLU(norm(sum_i U_i c[read(f, i)])) + b) / T),    c[f] = mean over t of x[f, t]

    What a sound looks like depends on its frequency, unlike an object's on its place in a picture. Attention
    sees a window of frequencies, of the kernel's size, stride and padding. The layer is a `PixelDynamicConv`
    whose mixture is constant in time, and costs K convolutions. `PartialFrequencyDynamicConv` has static
    features, too.

    Spectrograms are `[*batch, frequency, time, C]` here, as those of `experiments.audio`; for others set
    `frequency_axis`. A sequence has one axis, and a mixture for each of its positions.

    The context, if it is passed, takes the place of x in c: `[*batch, *spatial, D]` on the input's grid, or a
    vector `[*batch, D]` for one mixture for the whole input, that of a long axis on which it is everywhere.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        num_kernels: K, the number of candidate kernels, and of biases.
        axis: 'frequency' (FDY) or 'time' (TDY): where mixtures differ. For one mixture for everything use
            `DynamicConv`, for one at each frequency and time `PixelDynamicConv`.
        frequency_axis: which spatial axis is frequency, counted from 0. The first of the others is time.
        dilations: the kernel dilation of each candidate, one number or one for each spatial axis, for kernels
            that reach differently far (DFD). It multiplies `kernel_dilation`, and padding grows with it. None
            for no dilation; the authors take (1, 1), (2, 1), (3, 1), (3, 1).
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.
        attention_norm: 'layer', 'batch' (the authors') or 'none'.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: see `dyn.ops.dynamic_conv`; a mixture at each frequency needs 'outputs', 'shared', 'fused'
            (on TPUs) or 'auto'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import FrequencyDynamicConv
        >>> layer = FrequencyDynamicConv(features=16, kernel_size=(3, 3), num_kernels=4)
        >>> x = jnp.ones((2, 128, 50, 8))  # 128 frequencies, 50 moments
        >>> y, state = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape
        (2, 128, 50, 16)
        >>> _, state = layer.apply(state, x, mutable=["intermediates"])
        >>> state["intermediates"]["attention"]["weights"][0]["pixel"].shape
        (2, 128, 1, 4)
    """

    num_kernels: int = 4
    axis: str = "frequency"
    frequency_axis: int = 0
    dilations: Sequence[int | Sequence[int]] | None = None
    reduction: float = 1 / 4
    min_squeeze: int = 4
    attention_norm: str = "layer"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what attention looks at, `[*batch, *spatial, D]` or `[*batch, D]`; None for the inputs
                themselves.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context, the groups or the dilations do not fit the inputs, or
                `axis` is unknown.
        """
        x, batch = self.flatten_inputs(inputs)
        geometry, axis = self.resolve_geometry(x), self.find_axis(x.ndim - 2)
        dilations = self.list_dilations(geometry.rank)
        kernels = self.make_candidates(x, self.num_kernels)
        dtype = float32_or_wider(x, kernels)
        context = self.flatten_local_context(context, x, batch)
        fields = self.attention_fields(context.shape[-1], dtype)
        windows = expand_along(read_windows(context, x, geometry, axis, dtype), geometry, axis)
        fields |= {"num_kernels": self.num_kernels, "precision": ATTENTION_PRECISION}
        mix = MixtureAttention(**fields)(windows)
        x = x.astype(self.conv_dtype(x))
        y = self.convolve_dilated(x, kernels, mix, geometry, dilations)
        y = self.add_mixed_bias(y, self.num_kernels, mix)
        return y.reshape(*batch, *y.shape[1:])

    def find_axis(self, rank: int) -> int:
        """Returns the spatial axis along which mixtures differ.

        Raises:
            ValueError: if `axis` is unknown, or the inputs have no such `frequency_axis`.
        """
        if self.axis not in ("frequency", "time"):
            raise ValueError(
                f"axis={self.axis!r} is unknown: write 'frequency' or 'time'. DynamicConv has one mixture "
                "for both axes, and PixelDynamicConv one at each place of both."
            )
        if rank == 1:
            return 0
        if not 0 <= self.frequency_axis < rank:
            raise ValueError(
                f"frequency_axis={self.frequency_axis} must be one of the inputs' {rank} spatial axes, "
                "counted from 0."
            )
        others = [axis for axis in range(rank) if axis != self.frequency_axis]
        return self.frequency_axis if self.axis == "frequency" else others[0]

    def list_dilations(self, rank: int) -> list[tuple[int, ...]]:
        """Returns the dilation of each candidate.

        Raises:
            ValueError: if there is not one for each candidate.
        """
        dilations = [1] * self.num_kernels if self.dilations is None else list(self.dilations)
        if len(dilations) != self.num_kernels:
            raise ValueError(
                f"dilations={self.dilations!r} must have one for each of num_kernels={self.num_kernels}."
            )
        return [per_axis("dilations", dilation, rank) for dilation in dilations]

    def convolve_dilated(
        self,
        x: Array,
        kernels: Array,
        mix: Array,
        geometry: Geometry,
        dilations: Sequence[tuple[int, ...]],
    ) -> Array:
        """Adds up the outputs of the candidates of each dilation, weighted by `mix`.

        Args:
            x: `[B, *spatial, I]`.
            kernels: `[K, *k, I/G, O]`.
            mix: `[B, K]`, or `[B, ..., K]` with the output's size along one axis and ones along the others.
            geometry: how kernels slide over x without these dilations.
            dilations: of each candidate.
        """
        outputs = []
        for dilation in dict.fromkeys(dilations):
            chosen = [k for k, other in enumerate(dilations) if other == dilation]

            def weigh(mix: Array, chosen: list[int] = chosen) -> Array:
                weights = jnp.stack([mix[..., k] for k in chosen], axis=-1)
                if mix.ndim == 2:
                    return weights
                return jnp.broadcast_to(weights, (mix.shape[0], *geometry.out, len(chosen)))

            y = convolve_with_geometry(
                x,
                jnp.stack([kernels[k] for k in chosen]),
                automate_sharding(weigh, mix),
                *(None, None, None),
                dilate_kernel(geometry, dilation, self.is_causal),
                self.lowering,
                self.precision,
            )
            outputs.append(y)
        return functools.reduce(jnp.add, outputs)


class PartialFrequencyDynamicConv(ConvLayer):
    """Joins static features and branches of features with mixtures of their own for each frequency (PFD).

        y = [conv(x, W), FDY_1(x), ..., FDY_A(x)]

    where each branch is a `FrequencyDynamicConv`, the submodules `branch1` to `branchA`, and has
    `dynamic_share` of the features; the rest, which come first, are static, the submodule `static`. Branches
    with different `dilations` make it multi-dilated (MDFD). With feature groups the parts are joined within
    each group.

    A branch cannot be started from a static network by `dyn.interop.warm_start`, which has one kernel for all
    features.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        dynamic_share: share of the features of each branch, at least one feature for each feature group;
            the authors take 1/8 for one branch and 1/11 for each of eight.
        branches: the `dilations` of each branch, as in `FrequencyDynamicConv`.
        num_kernels, axis, frequency_axis, reduction, min_squeeze: see `FrequencyDynamicConv`.
        attention_norm, use_running_average, lowering: see there, too.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import PartialFrequencyDynamicConv
        >>> branches = (None, ((1, 1), (2, 1), (3, 1), (3, 1)))
        >>> layer = PartialFrequencyDynamicConv(features=32, kernel_size=(3, 3), branches=branches)
        >>> x = jnp.ones((2, 64, 50, 8))  # 64 frequencies, 50 moments
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 64, 50, 32)
        >>> {name: p["kernel"].shape for name, p in variables["params"].items()}
        {'static': (3, 3, 8, 24), 'branch1': (4, 3, 3, 8, 4), 'branch2': (4, 3, 3, 8, 4)}
    """

    num_kernels: int = 4
    axis: str = "frequency"
    frequency_axis: int = 0
    dynamic_share: float = 1 / 8
    branches: Sequence[Any] = (None,)
    reduction: float = 1 / 4
    min_squeeze: int = 4
    attention_norm: str = "layer"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what the attention of every branch looks at, as in `FrequencyDynamicConv`.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the branches have more features than there are, or for what a
                `FrequencyDynamicConv` refuses.
        """
        x, batch = self.flatten_inputs(inputs)
        *size, in_features, _ = self.kernel_shape(x)
        groups, number = self.feature_group_count, len(self.branches)
        each = max(1, round(self.features * self.dynamic_share / groups))  # in a group
        static = self.features // groups - number * each
        if not 0 < self.dynamic_share <= 1 or number < 1 or static < 0:
            raise ValueError(
                f"dynamic_share={self.dynamic_share} of {self.features} features in {groups} feature groups "
                f"for each of {number} branches: there must be a branch, and not more features than all."
            )
        if context is not None:
            context = self.flatten_local_context(context, x, batch)
        own = ("parent", "name", "features", "mask", "dynamic_share", "branches")
        dynamic = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        dynamic = {name: value for name, value in dynamic.items() if name not in own}
        plain = {field.name for field in dataclasses.fields(Conv)}
        sizes = [static] * (static > 0) + [each] * number
        masks = self.cut_mask((*size, in_features, self.features), sizes)
        outputs = []
        if static:
            fields = {name: value for name, value in dynamic.items() if name in plain}
            # A mixture's lowerings are others.
            fields |= {"mask": masks.pop(0), "lowering": "auto", "name": "static"}
            outputs.append(Conv(static * groups, **fields)(x))
        for n, (dilations, mask) in enumerate(zip(self.branches, masks, strict=True), start=1):
            branch = FrequencyDynamicConv(
                each * groups, **dynamic, mask=mask, dilations=dilations, name=f"branch{n}"
            )
            outputs.append(branch(x, context))

        def join(outputs: list[Array]) -> Array:
            parts = [y.reshape(*y.shape[:-1], groups, y.shape[-1] // groups) for y in outputs]
            return jnp.concatenate(parts, axis=-1).reshape(*y.shape[:-1], self.features)

        y = outputs[0]
        y = automate_sharding(join, outputs, axes=mesh_axes(y)[:-1])
        return y.reshape(*batch, *y.shape[1:])

    def cut_mask(self, shape: tuple[int, ...], sizes: Sequence[int]) -> list[Array | None]:
        """Returns the mask of each part, which has `sizes` features in each feature group."""
        if self.mask is None:
            return [None] * len(sizes)
        mask = self.apply_mask(jnp.ones(shape))  # checks its shape
        mask = mask.reshape(*shape[:-1], self.feature_group_count, sum(sizes))
        parts = jnp.split(mask, [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)], axis=-1)
        return [part.reshape(*shape[:-1], -1) for part in parts]


def read_windows(
    context: Array, x: Array, geometry: Geometry, axis: int, dtype: jnp.dtype
) -> Array:
    """Averages a context over all spatial axes but one, and reads the window of each output along that one.

    Args:
        context: `[B, *spatial, D]` on the grid of the input, or a vector `[B, D]`.
        x: the input, `[B, *spatial, I]`.
        geometry: how the kernel slides over the input; along the axis a window has its k positions.
        axis: the spatial axis that stays.
        dtype: dtype of the result.

    Returns:
        `[B, n, k D]` for the n outputs along the axis, or `[B, k D]` for a vector.

    Raises:
        ValueError: if the context does not lie on the grid of the input.
    """
    taps = geometry.size[axis]
    if context.ndim == 2:
        return automate_sharding(lambda vector: jnp.tile(vector, (1, taps)), context.astype(dtype))
    if context.shape[1:-1] != x.shape[1:-1]:
        raise ValueError(
            f"context lies on a grid of {context.shape[1:-1]}; it must lie on the input's, {x.shape[1:-1]}."
        )
    others = tuple(n + 1 for n in range(geometry.rank) if n != axis)
    context = jnp.mean(context, axis=others, dtype=dtype)
    along = select_axis(geometry, axis)

    def read(context: Array) -> Array:
        windows = along.extract_patches(along.pad_edges(context))
        return windows.reshape(*windows.shape[:2], taps * context.shape[-1])

    return automate_sharding(read, context, axes=mesh_axes(context)[:-1])


def select_axis(geometry: Geometry, axis: int) -> Geometry:
    """Returns how a kernel slides along one spatial axis."""
    return Geometry(
        spatial=geometry.spatial[axis : axis + 1],
        size=geometry.size[axis : axis + 1],
        strides=geometry.strides[axis : axis + 1],
        padding=geometry.padding[axis : axis + 1],
        input_dilation=geometry.input_dilation[axis : axis + 1],
        kernel_dilation=geometry.kernel_dilation[axis : axis + 1],
        extension=geometry.extension[axis : axis + 1],
        mode=geometry.mode,
    )


def expand_along(windows: Array, geometry: Geometry, axis: int) -> Array:
    """Gives windows `[B, n, D]` along a spatial axis the other ones, of size one; `[B, D]` stays."""
    if windows.ndim == 2:
        return windows
    others = [n + 1 for n in range(geometry.rank) if n != axis]
    return jnp.expand_dims(windows, others)


def dilate_kernel(geometry: Geometry, dilation: Sequence[int], causal: bool) -> Geometry:
    """Dilates a kernel further, and pads more, so that the windows keep their number and middle, or end."""
    reach = [(k - 1) * d for k, d in zip(geometry.size, geometry.kernel_dilation, strict=True)]
    more = [r * (d - 1) for r, d in zip(reach, dilation, strict=True)]
    grow = [(n, 0) if causal else (n // 2, n - n // 2) for n in more]
    kernel_dilation = tuple(a * b for a, b in zip(geometry.kernel_dilation, dilation, strict=True))
    if geometry.mode is None:
        padding = _add_pairs(geometry.padding, grow)
        return dataclasses.replace(geometry, kernel_dilation=kernel_dilation, padding=padding)
    return dataclasses.replace(
        geometry,
        kernel_dilation=kernel_dilation,
        extension=_add_pairs(geometry.extension, grow),
        spatial=tuple(n + sum(pair) for n, pair in zip(geometry.spatial, grow, strict=True)),
    )


def _add_pairs(
    pairs: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    return tuple((a + c, b + d) for (a, b), (c, d) in zip(pairs, others, strict=True))
