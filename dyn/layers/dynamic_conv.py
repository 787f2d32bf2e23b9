"""Dynamic convolution: a mixture of kernels whose weights sum to one.

Chen, Dai, Liu, Chen, Yuan, Liu: Dynamic Convolution: Attention over Convolution Kernels. CVPR 2020.
https://arxiv.org/abs/1912.03458

The authors published no code. Where the paper leaves a choice, and re-implementations differ: the
squeezed vector has exactly a quarter of the context's features (others add one), at least `min_squeeze`;
the squeeze has no bias and the head has one; kernels start normal for the fan out like every layer's
here (others: uniform for the fan in), and are initialised in 1-D, 2-D and 3-D alike.
"""

from typing import Any

import flax.linen as nn
import jax

from dyn.layers.attention import head, squeeze, temperature
from dyn.layers.convolution import ConvLayer
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


class DynamicConv(ConvLayer):
    """A convolution with a mixture of K kernels and K biases, weighed anew for each input.

        y = conv(x, sum_k a[k] W_k) + sum_k a[k] b_k,    a = softmax((W_2 ReLU(W_1 context) + b_2) / T)

    In the paper nothing normalises W_1 context; `attention_norm` can. With few or small pictures that
    trains far more steadily as T nears 1.

    A high temperature keeps the weights near 1 / K at first, so that all kernels learn: the paper starts
    at 30 and anneals to 1 over the first ten epochs (`dyn.schedules.linear_temperature`). With K = 1
    there is nothing to weigh, and the layer is a static convolution without attention.

    Attributes:
        features: `nn.Conv`'s fields come first, in its order; see `ConvLayer`.
        num_kernels: K, the number of candidate kernels, and of biases.
        reduction: size of the squeezed vector, as a share of the context's.
        min_squeeze: its least size.
        attention_norm: 'none' (the paper's), 'batch' or 'layer', in front of the attention's ReLU.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        lowering: see `dyn.ops.dynamic_conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import DynamicConv
        >>> layer = DynamicConv(features=16, kernel_size=(3, 3), strides=2, num_kernels=4)
        >>> x = jnp.ones((2, 32, 32, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 16, 16, 16)
    """

    num_kernels: int = 4
    reduction: float = 1 / 4
    min_squeeze: int = 4
    attention_norm: str = "none"
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
        context = self.flat_context(context, x, batch)
        mix = None
        if self.num_kernels > 1:
            mix = KernelAttention(
                num_kernels=self.num_kernels,
                reduction=self.reduction,
                min_squeeze=self.min_squeeze,
                norm=self.attention_norm,
                use_running_average=self.use_running_average,
                dtype=float32_or_wider(x, kernel),
                param_dtype=self.param_dtype,
                name="attention",
            )(context)
        y = self.convolve(x.astype(self.conv_dtype(x)), kernel, mix, lowering=self.lowering)
        y = self.add_mixed_bias(y, self.num_kernels, mix)
        return y.reshape(*batch, *y.shape[1:])


class KernelAttention(nn.Module):
    """Weights of K candidate kernels that sum to one (section 3 of the paper), `[B, D]` to `[B, K]`.

    Sows what it returns as `weights`.
    """

    num_kernels: int
    reduction: float
    min_squeeze: int
    norm: str
    use_running_average: bool | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Weighs the candidate kernels."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        z = squeeze(
            context.astype(self.dtype),
            max(int(context.shape[-1] * self.reduction), self.min_squeeze),
            norm=self.norm,
            use_running_average=self.use_running_average,
            **types,
        )
        t = temperature(self).astype(self.dtype)
        mix = nn.softmax(head("kernel", z, self.num_kernels, **types) / t)
        self.sow("intermediates", "weights", {"kernel": mix})
        return mix
