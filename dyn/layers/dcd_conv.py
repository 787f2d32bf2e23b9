"""Dynamic convolution decomposition: a static kernel and a small dynamic matrix in a latent space.

Li, Chen, Dai, Liu, Chen, Yu, Yuan, Liu, Chen, Vasconcelos: Revisiting Dynamic Convolution via Matrix
Decomposition. ICLR 2021. https://arxiv.org/abs/2103.08756

Deviations from the authors' code: one layer with a field `pool` for both kinds of residual blocks; 1-D and
3-D inputs, kernels that are not square, every padding of `nn.Conv`, an optional bias, context from
elsewhere.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dyn.layers.attention import AttentionBranch, average_positions, he_normal_fan_out
from dyn.layers.convolution import ConvLayer
from dyn.layers.dense import DenseLayer
from dyn.layers.norms import apply_batch_norm
from dyn.ops.dtypes import broadcast_weights, float32_or_wider
from dyn.ops.dynamic_conv import expand_over_space
from dyn.ops.sharding import automate_sharding

Array = jax.Array

# torch's default for linear layers, which the authors' residual networks leave in place.
_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class DCDConv(ConvLayer):
    """Adds a static convolution with weighted filters and a dynamic 1x1 convolution in a latent space.

        y = a_f * conv(x, W) + P (norm(F q) + q),    q = norm(Q x)

    where Q takes the I input features to L latent ones and P takes these to the O output features. With
    the context g,

        s = A_1 g,    s' = s * h(A_2 s),    a_f = h(A_f s'),    F = A_F s' as an L x L matrix

    and h(v) = relu6(v + 3) / 3, which starts near one. No per-sample kernels are made: each sample costs
    one product with its L x L matrix. Without norms the layer is a convolution with the kernel a_f W, to
    whose central position P (F + 1) Q is added.

    The context is the mean of the input in `pool` bins along each spatial axis. The authors use 2 bins in
    the basic blocks of ResNet-18 and 34, and 1 in the bottlenecks of ResNet-50.

    In the 1x1 convolutions of MobileNetV2, `pool=None`, they use 2 bins where a layer has more outputs than
    inputs, and 1 elsewhere. L is then the smaller of I * pool ** axes and O, divided by 2 * pool ** axes, and
    halved while L * L exceeds 2 * I * pool ** axes; at least 4. The `reduction` of their published file is
    1 / 16, that of their code 1 / 8.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        pool: number of bins along each spatial axis, with the bounds of torch's adaptive average; None for
            the rule of MobileNetV2.
        latent: L; None for the square root, rounded down, of I * pool ** (number of spatial axes), or for
            the rule of MobileNetV2 with `pool=None`.
        reduction: size of the squeezed vector, as a share of the larger of the context's size and L * L.
        min_squeeze: lower bound on that size.
        attention_norm: 'none' (the authors'), 'layer' or 'batch', applied to A_1 g. Without a norm F grows
            with the context. At inference the running statistics of the other norms do not limit it, the
            growth multiplies from layer to layer, and with few or small pictures the outputs overflow. With
            a norm F has the same magnitude for all inputs.
        use_running_average: None uses batch statistics exactly when the collection `batch_stats` is
            mutable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import DCDConv
        >>> layer = DCDConv(features=16, kernel_size=(3, 3), strides=2)
        >>> x = jnp.ones((2, 32, 32, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 16, 16, 16)
    """

    pool: int | None = 2
    latent: int | None = None
    reduction: float = 1 / 16
    min_squeeze: int = 4
    attention_norm: str = "none"
    use_running_average: bool | None = None

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what attention looks at, `[*batch, D]`; None for the means of the inputs in `pool`
                bins along each spatial axis.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: for groups and masks, which the dynamic part cannot respect; if the kernel or the
                context does not fit the inputs; for batch statistics of a single position.
        """
        x, batch = self.flatten_inputs(inputs)
        self._check_fields()
        kernel = self.make_candidates(x, 1)
        wide = float32_or_wider(x, kernel)
        pool = self.pool
        if pool is None:
            pool = 2 if x.shape[-1] < self.features else 1
        if context is None:
            context = bin_averages(x, pool, wide)
        else:
            context = self.flatten_context(context, x, batch).astype(wide)

        latent = self.latent
        if latent is None:
            seen = x.shape[-1] * pool ** (x.ndim - 2)
            if self.pool is None:
                latent = choose_mobile_latent(seen, self.features, 2 * pool ** (x.ndim - 2))
            else:
                latent = math.isqrt(seen)
        fields = self.attention_fields(max(context.shape[-1], latent**2), wide)
        filters, matrix = DCDAttention(features=self.features, latent=latent, **fields)(context)

        x = x.astype(self.conv_dtype(x))
        # One convolution, because the kernel is the same for every sample.
        y = self.convolve(x, kernel)
        y = y * expand_over_space(filters, y) + apply_latent_branch(
            self.central_inputs(x),
            matrix,
            self.features,
            kernel_init=he_normal_fan_out,
            use_running_average=self.use_running_average,
            param_dtype=self.param_dtype,
            precision=self.precision,
        )
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])

    def central_inputs(self, x: Array) -> Array:
        """Returns the inputs of the kernel's central position, `[B, *out, I]`."""
        geometry = self.resolve_geometry(x)
        padding = []
        for k, dilation, (before, after) in zip(
            geometry.size, geometry.kernel_dilation, geometry.padding, strict=True
        ):
            centre = (k - 1) // 2
            padding.append((before - centre * dilation, after - (k - 1 - centre) * dilation))
        ones = (1,) * geometry.rank
        pointwise = dataclasses.replace(
            geometry, size=ones, kernel_dilation=ones, padding=tuple(padding)
        )
        return pointwise.shift_inputs(geometry.pad_edges(x))[0]

    def _check_fields(self) -> None:
        if self.feature_group_count != 1:
            raise ValueError(
                f"feature_group_count={self.feature_group_count}: the latent space of DCDConv mixes all "
                "features. Leave grouped and depthwise convolutions static, as the paper does."
            )
        if self.mask is not None:
            raise ValueError(
                "mask would hide weights of DCDConv's static kernel only, not of its dynamic part: use "
                "another layer if positions must stay hidden."
            )
        if self.pool is not None and self.pool < 1:
            raise ValueError(f"pool={self.pool} must be at least 1 bin along each spatial axis.")


class DCDDense(DenseLayer):
    """Computes a dense layer with the two dynamic parts of `DCDConv`: the classifier to go with it.

        y = a_f * (W x + b) + P (norm(F q) + q),    q = norm(Q x)

    with a_f and F from the context as in `DCDConv`. Drop-in for `nn.Dense`.

    Attributes:
        features: number of output features; `nn.Dense`'s other fields follow, see `DenseLayer`.
        latent: L, size of the latent space.
        squeezed: size of the squeezed vector.
        attention_norm: 'none' (the authors'), 'layer' or 'batch', as in `DCDConv`.
        use_running_average: None uses batch statistics exactly when the collection `batch_stats` is
            mutable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import DCDDense
        >>> layer = DCDDense(features=10)
        >>> x = jnp.ones((2, 512))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 10)
    """

    latent: int = 32
    squeezed: int = 32
    attention_norm: str = "none"
    use_running_average: bool | None = None

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *tokens, D]`, any number of batch axes.
            context: what attention looks at, `[*batch, C]`; None for the mean of the inputs over tokens.

        Returns:
            `[*batch, *tokens, features]`.

        Raises:
            ValueError: if the context has other batch axes, and for batch statistics of one sample.
        """
        x, batch = self.flatten_inputs(inputs)
        context = self.flatten_context(context, x, batch)
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        wide = float32_or_wider(x, kernel)
        filters, matrix = DCDAttention(
            features=self.features,
            latent=self.latent,
            squeezed=self.squeezed,
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            dtype=wide,
            param_dtype=self.param_dtype,
            name="attention",
        )(context.astype(wide))

        dtype = self.dtype
        if dtype is None:
            with jax.numpy_dtype_promotion("standard"):  # also if the caller has forbidden it
                dtype = jnp.promote_types(x.dtype, self.param_dtype)
        x = x.astype(dtype)
        y = jnp.matmul(x, kernel.astype(dtype), precision=self.precision)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y = y + broadcast_weights(lax.broadcast_to_rank(bias, y.ndim), y)
        y = y * expand_over_space(filters, y) + apply_latent_branch(
            x,
            matrix,
            self.features,
            kernel_init=_linear_init,
            use_running_average=self.use_running_average,
            param_dtype=self.param_dtype,
            precision=self.precision,
        )
        return y.reshape(*inputs.shape[:-1], self.features)


class DCDAttention(AttentionBranch):
    """Computes the weights of the filters and the matrix of the latent space, from a context `[B, D]`.

    Returns `(filters [B, O], latent [B, L, L])` and sows them as `weights`.
    """

    features: int
    latent: int

    @nn.compact
    def __call__(self, context: Array) -> tuple[Array, Array]:
        """Computes the weights of the filters and the matrix."""
        linear = partial(self.apply_head, use_bias=False, kernel_init=_linear_init)
        z = self.normalise(linear("squeeze", context, self.squeezed))
        z = z * _gate(linear("excite", z, self.squeezed))
        filters = _gate(linear("filter", z, self.features))
        latent = linear("latent", z, self.latent**2).reshape(-1, self.latent, self.latent)
        self.sow_weights(filter=filters, latent=latent)
        return filters, latent


def apply_latent_branch(
    x: Array,
    matrix: Array,
    features: int,
    *,
    kernel_init: nn.initializers.Initializer,
    use_running_average: bool | None,
    param_dtype: Any,
    precision: Any,
) -> Array:
    """Computes P (norm(F q) + q) with q = norm(Q x); call it inside a compact method.

    It makes the submodules `compress` (Q), `compress_norm`, `latent_norm` and `expand` (P).

    Args:
        x: `[B, ..., I]`.
        matrix: F, `[B, L, L]`.
        features: number of output features.
        kernel_init: initialises Q and P.
        use_running_average: None uses batch statistics exactly when `batch_stats` is mutable.
        param_dtype: dtype of the parameters.
        precision: precision of the products.

    Returns:
        `[B, ..., features]` in the dtype of `x`.

    Raises:
        ValueError: for batch statistics of a single position.
    """

    def linear(name: str, features: int, z: Array) -> Array:
        return nn.Dense(
            features,
            use_bias=False,
            kernel_init=kernel_init,
            dtype=x.dtype,
            param_dtype=param_dtype,
            precision=precision,
            name=name,
        )(z)

    def norm(name: str, z: Array) -> Array:
        # Statistics are computed in float32 or wider, whatever dtype the products have.
        z = apply_batch_norm(
            name,
            z,
            use_running_average=use_running_average,
            instead="use larger pictures",
            dtype=matrix.dtype,
            param_dtype=param_dtype,
        )
        return z.astype(x.dtype)

    q = norm("compress_norm", linear("compress", matrix.shape[-1], x))
    mixed = jnp.einsum("blm,b...m->b...l", matrix.astype(x.dtype), q, precision=precision)
    return linear("expand", features, norm("latent_norm", mixed) + q)


def bin_averages(x: Array, bins: int, dtype: jnp.dtype) -> Array:
    """Averages `x`, `[B, *spatial, C]`, in bins along each spatial axis: `[B, C * bins ** axes]`.

    Bin i of an axis of length n goes from floor(i n / bins) to ceil((i + 1) n / bins): neighbours overlap
    if the length is no multiple of the number of bins. The result is ordered by features first, as in
    torch, so that published weights fit.
    """

    def average(x: Array) -> Array:
        for axis in range(1, x.ndim - 1):
            n = x.shape[axis]
            bounds = [(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)]
            means = [
                average_positions(lax.slice_in_dim(x, start, end, axis=axis), (axis,), dtype)
                for start, end in bounds
            ]
            x = jnp.stack(means, axis=axis)
        return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], math.prod(x.shape[1:]))

    return automate_sharding(average, x)


def choose_mobile_latent(seen: int, features: int, divisor: int) -> int:
    """Returns L of a 1x1 convolution in the authors' MobileNetV2.

    Args:
        seen: size of the context, I * pool ** axes.
        features: number of output features.
        divisor: of the smaller of both, doubled while L * L exceeds twice `seen`.
    """
    while (latent := min(seen, features) // divisor) ** 2 > 2 * seen:
        divisor *= 2
    return max(latent, 4)


def _gate(v: Array) -> Array:
    """Computes a hard sigmoid from zero to two, which is one at zero."""
    return nn.relu6(v + 3) / 3
