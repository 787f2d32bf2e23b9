"""Dynamic convolution: a mixture of kernels whose weights sum to one.

Chen, Dai, Liu, Chen, Yuan, Liu: Dynamic Convolution: Attention over Convolution Kernels. CVPR 2020.
https://arxiv.org/abs/1912.03458

The authors published no code. Choices that the paper leaves open, and on which re-implementations differ:
the squeezed vector has exactly a quarter of the context's features (others add one), at least
`min_squeeze`; the squeeze has no bias and the head has one; kernels start normal for the fan out as in
all layers here (others: uniform for the fan in), in 1-D, 2-D and 3-D alike.
"""

import flax.linen as nn
import jax

from dyn.layers.attention import MixtureAttention
from dyn.layers.convolution import ConvLayer
from dyn.layers.dense import DenseLayer
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


class DynamicConv(ConvLayer):
    """Convolves each input with its own mixture of K kernels and K biases.

        y = conv(x, sum_k a[k] W_k) + sum_k a[k] b_k,    a = softmax((W_2 ReLU(W_1 context) + b_2) / T)

    The paper does not normalise W_1 context; `attention_norm` can. With few or small pictures, training is
    then far more stable as T approaches 1.

    A high temperature keeps the weights near 1 / K at first, so that all kernels learn: the paper starts
    at 30 and anneals to 1 over the first ten epochs (`dyn.schedules.linear_temperature`). With K = 1 the
    layer is a static convolution without attention.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        num_kernels: K, the number of candidate kernels, and of biases.
        reduction: size of the squeezed vector, as a share of the context's; None: the context is not
            squeezed, and the logits are W_2 context + b_2, as in DyMN, whose blocks squeeze it.
        min_squeeze: lower bound on that size.
        attention_norm: 'none' (the paper's), 'batch' or 'layer', before the attention's ReLU.
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
    reduction: float | None = 1 / 4
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
        x, batch = self.flatten_inputs(inputs)
        kernel = self.make_candidates(x, self.num_kernels)
        context = self.flatten_context(context, x, batch)
        mix = None
        if self.num_kernels > 1:
            dtype = float32_or_wider(x, kernel)
            fields = self.attention_fields(context.shape[-1], dtype)
            fields["squeezes"] = self.reduction is not None
            mix = MixtureAttention(num_kernels=self.num_kernels, **fields)(context)
        y = self.convolve(x.astype(self.conv_dtype(x)), kernel, mix, lowering=self.lowering)
        y = self.add_mixed_bias(y, self.num_kernels, mix)
        return y.reshape(*batch, *y.shape[1:])


class DynamicDense(DenseLayer):
    """Multiplies each input by its own mixture of K matrices, and adds a mixture of K biases.

        y = x (sum_k a[k] W_k) + sum_k a[k] b_k,    a = softmax((W_2 ReLU(W_1 context) + b_2) / T)

    It is a `DynamicConv` with a kernel of one tap. Drop-in for `nn.Dense`.

    Attributes:
        features: number of output features; `nn.Dense`'s other fields follow, see `DenseLayer`, and those of
            `DynamicConv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import DynamicDense
        >>> layer = DynamicDense(features=10, num_kernels=4)
        >>> x = jnp.ones((2, 512))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 10)
    """

    num_kernels: int = 4
    reduction: float | None = 1 / 4
    min_squeeze: int = 4
    attention_norm: str = "none"
    use_running_average: bool | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer; see `DenseLayer.apply_conv`."""
        return self.apply_conv(DynamicConv, inputs, context)
