"""Omni-dimensional dynamic convolution.

Li, Zhou, Yao: Omni-Dimensional Dynamic Convolution. ICLR 2022. https://openreview.net/forum?id=DmpCfq6Mg39

Extensions of the authors' code: non-square kernels, 1-D and 3-D inputs, every padding of `nn.Conv`, an
optional bias, a choice of norm in the attention branch, and context from elsewhere.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax

from dyn.layers.attention import AttentionBranch
from dyn.layers.convolution import ConvLayer
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


class ODConv(ConvLayer):
    """Convolves each input with kernels that are weighted along all four of their dimensions.

        y = a_f * conv(x * a_c, sum_k a_w[k] (a_s * W_k))

    with z = ReLU(norm(W_fc context)) and, at temperature T,

        a_c = sigmoid((W_c z + b_c) / T)    input channels
        a_f = sigmoid((W_f z + b_f) / T)    output filters; not for a depthwise convolution
        a_s = sigmoid((W_s z + b_s) / T)    kernel positions; not for a 1x1 kernel
        a_w = softmax((W_w z + b_w) / T)    candidate kernels; not for K = 1

    The sigmoids start near one half each: with all three, outputs start about eight times too small. The
    mean of K independent kernels is smaller by another factor of sqrt(K). Use a norm after the layer.
    `dyn.layers` describes temperature, attention statistics and the sown weights.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        num_kernels: K, the number of candidate kernels.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: lower bound on that size.
        attention_norm: 'layer', 'batch' (the paper's, which published weights need) or 'none'; see
            `dyn.layers`.
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
    attention_norm: str = "layer"
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
        x, batch = self.flatten_inputs(inputs)
        kernel = self.make_candidates(x, self.num_kernels)
        context = self.flatten_context(context, x, batch)
        channels, filters, taps, mix = ODAttention(
            in_features=x.shape[-1],
            features=self.features,
            kernel_size=kernel.shape[1:-2],
            groups=self.feature_group_count,
            num_kernels=self.num_kernels,
            **self.attention_fields(context.shape[-1], float32_or_wider(x, kernel)),
        )(context)
        y = self.convolve(
            x.astype(self.conv_dtype(x)),
            kernel,
            mix,
            taps=taps,
            channels=channels,
            filters=filters,
            lowering=self.lowering,
        )
        y = self.add_bias(y)
        return y.reshape(*batch, *y.shape[1:])


class ODAttention(AttentionBranch):
    """The four attentions of ODConv (section 3.2 of the paper), from a context `[B, D]`.

    Returns `(channels [B, I], filters [B, O], taps [B, *k], mix [B, K])`, each of which may be None, which
    stands for a weight of one that is not computed. Sows what it returns as `weights`.
    """

    in_features: int
    features: int
    kernel_size: tuple[int, ...]
    groups: int
    num_kernels: int

    @nn.compact
    def __call__(self, context: Array) -> tuple[Array | None, ...]:
        """Computes the weights of channels, filters, kernel positions and candidate kernels."""
        z, temperature = self.squeeze_context(context), self.read_temperature()

        def compute_logits(name: str, size: int) -> Array:
            return self.apply_head(name, z, size) / temperature

        parts = self.list_parts()
        channels = filters = taps = None
        if "channel" in parts:
            channels = self.gate(compute_logits("channel", self.in_features))
        if "filter" in parts:
            filters = self.gate(compute_logits("filter", self.features))
        if "spatial" in parts:
            taps = self.gate(compute_logits("spatial", math.prod(self.kernel_size)))
            taps = taps.reshape(-1, *self.kernel_size)
        mix = self.weight_candidates(compute_logits)
        self.sow_weights(channel=channels, filter=filters, spatial=taps, kernel=mix)
        return channels, filters, taps, mix

    def list_parts(self) -> tuple[str, ...]:
        """Returns the parts of the convolution that are weighted beside the candidate kernels."""
        depthwise = self.groups == self.in_features == self.features
        several_taps = any(k > 1 for k in self.kernel_size)
        return ("channel", *(() if depthwise else ("filter",)), *(("spatial",) * several_taps))

    def gate(self, logits: Array) -> Array:
        """Turns logits into independent weights."""
        return nn.sigmoid(logits)

    def weight_candidates(self, logits: Callable[[str, int], Array]) -> Array | None:
        """Returns weights of the candidate kernels that sum to one; None for K = 1."""
        if self.num_kernels == 1:
            return None
        return nn.softmax(logits("kernel", self.num_kernels))
