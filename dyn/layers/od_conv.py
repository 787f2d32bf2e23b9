"""Omni-dimensional dynamic convolution.

Li, Zhou, Yao: Omni-Dimensional Dynamic Convolution. ICLR 2022. https://openreview.net/forum?id=DmpCfq6Mg39

Deviations from the authors' code: kernels need not be square, 1-D and 3-D inputs, every padding of
`nn.Conv`, an optional bias, a choice of norm in the attention branch, and context from elsewhere.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import (
    global_average,
    he_normal_fan_out,
    head,
    per_candidate,
    squeeze,
    temperature,
)
from dyn.layers.convolution import compute_dtype, flatten_batch, kernel_shape
from dyn.ops import dynamic_conv
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.window import Padding

Array = jax.Array


class ODConv(nn.Module):
    """A convolution whose kernel is weighed along all four of its dimensions, for each input.

        y = a_f * conv(x * a_c, sum_k a_w[k] (a_s * W_k))

    with z = ReLU(norm(W_fc context)) and, at temperature T,

        a_c = sigmoid((W_c z + b_c) / T)    input channels
        a_f = sigmoid((W_f z + b_f) / T)    output filters; not for a depthwise convolution
        a_s = sigmoid((W_s z + b_s) / T)    kernel positions; not for a 1x1 kernel
        a_w = softmax((W_w z + b_w) / T)    candidate kernels; not for K = 1

    The sigmoids start near one half each, so that outputs start about eight times too small: use a norm
    behind the layer. Temperature, attention statistics and the sown weights are described in
    `dyn.layers`.

    Attributes:
        features, kernel_size, strides, padding, input_dilation, kernel_dilation, feature_group_count,
            use_bias, mask, dtype, param_dtype, precision, kernel_init, bias_init: as in `nn.Conv`, in
            its order. `mask` has the shape of one kernel. `kernel_init` initialises each candidate by
            itself; its default is the paper's, normal with variance 2 / fan_out.
        num_kernels: K, the number of candidate kernels.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: its least size.
        attention_norm: 'batch' (the paper's), 'layer' or 'none'.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: see `dyn.ops.dynamic_conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import ODConv
        >>> layer = ODConv(features=16, kernel_size=(3, 3), strides=2, num_kernels=4)
        >>> x = jnp.ones((2, 32, 32, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 16, 16, 16)
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: Padding = "SAME"
    input_dilation: int | Sequence[int] | None = 1
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: Array | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: nn.initializers.Initializer = he_normal_fan_out
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    num_kernels: int = 4
    reduction: float = 1 / 16
    min_squeeze: int = 16
    attention_norm: str = "batch"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what attention looks at, `[*batch, D]`; None for the mean of the inputs over space.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context or the groups do not fit the inputs.
        """
        size = kernel_shape(self.kernel_size, inputs)
        x, batch = flatten_batch(inputs, len(size) + 1)
        in_features = x.shape[-1]
        groups = self.feature_group_count
        if in_features % groups or self.features % groups:
            raise ValueError(
                f"feature_group_count={groups} must divide the {in_features} input features and the "
                f"{self.features} output features."
            )
        one_kernel = (*size, in_features // groups, self.features)
        kernel = self.param(
            "kernel",
            per_candidate(self.kernel_init),
            (self.num_kernels, *one_kernel),
            self.param_dtype,
        )
        if self.mask is not None:
            if self.mask.shape != one_kernel:
                raise ValueError(
                    f"mask must have the shape of one kernel, {one_kernel}; got {self.mask.shape}."
                )
            kernel = kernel * self.mask.astype(kernel.dtype)

        attention_type = float32_or_wider(x, kernel)
        if context is None:
            context = global_average(x, len(size), attention_type)
        elif context.shape[:-1] != batch:
            raise ValueError(
                f"context must be [*batch, D] with the inputs' batch axes {batch}; got shape "
                f"{context.shape}. ODConv's attention is one for the whole input: for attention that "
                "differs from place to place take a pixel-wise layer."
            )
        else:
            context, _ = flatten_batch(context, 1)
        channel, filters, taps, mix = ODAttention(
            in_features=in_features,
            features=self.features,
            kernel_size=size,
            groups=groups,
            num_kernels=self.num_kernels,
            reduction=self.reduction,
            min_squeeze=self.min_squeeze,
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            dtype=attention_type,
            param_dtype=self.param_dtype,
            name="attention",
        )(context)

        dtype = compute_dtype(self.dtype, x, self.param_dtype)
        everywhere = (slice(None), *(None,) * len(size))
        x = x.astype(dtype) * channel.astype(dtype)[everywhere]
        y = dynamic_conv(
            x,
            kernel,
            mix,
            taps=taps,
            strides=self.strides,
            padding=self.padding,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=groups,
            lowering=self.lowering,
            precision=self.precision,
        )
        if filters is not None:
            y = y * filters.astype(dtype)[everywhere]
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y = y + bias.astype(dtype)
        return y.reshape(*batch, *y.shape[1:])


class ODAttention(nn.Module):
    """The four attentions of ODConv (section 3.2 of the paper), from a context `[B, D]`.

    Returns `(channel [B, I], filters [B, O] or None, taps [B, *k] or None, mix [B, K] or None)`; None
    stands for a weight of one that is not computed. Sows what it returns as `weights`.
    """

    in_features: int
    features: int
    kernel_size: tuple[int, ...]
    groups: int
    num_kernels: int
    reduction: float
    min_squeeze: int
    norm: str
    use_running_average: bool | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, context: Array) -> tuple[Array, Array | None, Array | None, Array | None]:
        """Weighs channels, filters, kernel positions and candidate kernels."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        context = context.astype(self.dtype)
        z = squeeze(
            context,
            max(int(context.shape[-1] * self.reduction), self.min_squeeze),
            norm=self.norm,
            use_running_average=self.use_running_average,
            **types,
        )
        t = temperature(self).astype(self.dtype)
        depthwise = self.groups == self.in_features == self.features
        pointwise = all(k == 1 for k in self.kernel_size)

        channel = nn.sigmoid(head("channel", z, self.in_features, **types) / t)
        filters = taps = mix = None
        if not depthwise:
            filters = nn.sigmoid(head("filter", z, self.features, **types) / t)
        if not pointwise:
            positions = 1
            for k in self.kernel_size:
                positions *= k
            taps = nn.sigmoid(head("spatial", z, positions, **types) / t)
            taps = taps.reshape(-1, *self.kernel_size)
        if self.num_kernels > 1:
            mix = nn.softmax(head("kernel", z, self.num_kernels, **types) / t)

        weights = {"channel": channel, "filter": filters, "spatial": taps, "kernel": mix}
        self.sow("intermediates", "weights", {k: v for k, v in weights.items() if v is not None})
        return channel, filters, taps, mix
