"""Omni-dimensional dynamic convolution.

Li, Zhou, Yao: Omni-Dimensional Dynamic Convolution. ICLR 2022. https://openreview.net/forum?id=DmpCfq6Mg39

Deviations from the authors' code: kernels need not be square, 1-D and 3-D inputs, every padding of
`nn.Conv`, an optional bias, a choice of norm in the attention branch, and context from elsewhere.
"""

import math
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.attention import head, squeeze, temperature
from dyn.layers.convolution import ConvLayer
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


class ODConv(ConvLayer):
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
        features: `nn.Conv`'s fields come first, in its order; see `ConvLayer`.
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
        x, batch = self.flat_inputs(inputs)
        kernel = self.candidate_kernels(x, self.num_kernels)
        channel, filters, taps, mix = ODAttention(
            in_features=x.shape[-1],
            features=self.features,
            kernel_size=self.kernel_dims(x),
            groups=self.feature_group_count,
            num_kernels=self.num_kernels,
            reduction=self.reduction,
            min_squeeze=self.min_squeeze,
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            dtype=float32_or_wider(x, kernel),
            param_dtype=self.param_dtype,
            name="attention",
        )(self.flat_context(context, x, batch))

        x = x.astype(self.conv_dtype(x))
        y = self.convolve(
            x,
            kernel,
            mix,
            taps=taps,
            channels=channel,
            filters=filters,
            lowering=self.lowering,
        )
        y = self.add_bias(y)
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
            taps = nn.sigmoid(head("spatial", z, math.prod(self.kernel_size), **types) / t)
            taps = taps.reshape(-1, *self.kernel_size)
        if self.num_kernels > 1:
            mix = nn.softmax(head("kernel", z, self.num_kernels, **types) / t)

        weights = {"channel": channel, "filter": filters, "spatial": taps, "kernel": mix}
        self.sow("intermediates", "weights", {k: v for k, v in weights.items() if v is not None})
        return channel, filters, taps, mix
