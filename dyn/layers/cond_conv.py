"""Conditionally parameterized convolution: a mixture of experts inside one convolution.

Yang, Bender, Le, Ngiam: CondConv: Conditionally Parameterized Convolutions for Efficient Inference.
NeurIPS 2019. https://arxiv.org/abs/1904.04971

Deviations from the authors' code: parameters keep the shape of kernels instead of being flattened; 1-D
and 3-D inputs, groups and every padding of `nn.Conv`; a bias, mixed like the kernels, unless
`use_bias=False` (theirs have none inside EfficientNet).
"""

from typing import Any

import flax.linen as nn
import jax

from dyn.layers.attention import ATTENTION_PRECISION
from dyn.layers.convolution import ConvLayer
from dyn.layers.dense import DenseLayer
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


class CondConv(ConvLayer):
    """Convolves each input with its own weighted sum of K expert kernels and biases.

        y = conv(x, sum_k r[k] W_k) + sum_k r[k] b_k,    r = sigmoid(R context + b)

    The weights are not normalised, and there is no temperature. At the start every weight is one half, so
    that outputs are sqrt(K) / 2 times as large as a static convolution's: use a norm after the layer.

    In the paper one routing serves all convolutions of a block and looks at the block's input: pass them
    the same `router` and, as `context`, the mean of that input over space.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, see `ConvLayer`.
        num_kernels: K, the number of experts.
        router: a module from a context `[B, D]` to logits `[B, K]`, which several layers of a block can
            share; None for a router of the layer's own.
        lowering: see `dyn.ops.dynamic_conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import CondConv
        >>> layer = CondConv(features=16, kernel_size=(3, 3), strides=2, num_kernels=8)
        >>> x = jnp.ones((2, 32, 32, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 16, 16, 16)
    """

    num_kernels: int = 8
    router: nn.Module | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.
            context: what the router looks at, `[*batch, D]`; None for the mean of the inputs over space.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel, the context, the router or the groups do not fit.
        """
        x, batch = self.flatten_inputs(inputs)
        kernel = self.make_candidates(x, self.num_kernels)
        mix = self.route(self.flatten_context(context, x, batch), dtype=float32_or_wider(x, kernel))
        y = self.convolve(x.astype(self.conv_dtype(x)), kernel, mix, lowering=self.lowering)
        y = self.add_mixed_bias(y, self.num_kernels, mix)
        return y.reshape(*batch, *y.shape[1:])

    def route(self, context: Array, dtype: Any) -> Array:
        """Returns the experts' weights, `[B, D]` to `[B, K]`, by the shared router or the layer's own."""
        router = self.router
        if router is None:
            router = nn.Dense(
                self.num_kernels,
                kernel_init=nn.initializers.glorot_uniform(),
                precision=ATTENTION_PRECISION,
                dtype=dtype,
                param_dtype=self.param_dtype,
                name="routing",
            )
        logits = router(context.astype(dtype))
        if logits.shape != (context.shape[0], self.num_kernels):
            raise ValueError(
                f"router must return logits [B, K] = {(context.shape[0], self.num_kernels)} for "
                f"num_kernels={self.num_kernels}; got shape {logits.shape}."
            )
        return Routing(name="attention")(logits.astype(dtype))


class CondDense(DenseLayer):
    """Multiplies each input by its own weighted sum of K expert matrices, and adds one of K biases.

        y = x (sum_k r[k] W_k) + sum_k r[k] b_k,    r = sigmoid(R context + b)

    It is a `CondConv` with a kernel of one tap. Drop-in for `nn.Dense`.

    Attributes:
        features: number of output features; `nn.Dense`'s other fields follow, see `DenseLayer`, and those of
            `CondConv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import CondDense
        >>> layer = CondDense(features=10, num_kernels=8, token_axes=1)
        >>> x = jnp.ones((2, 7, 512))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 7, 10)
    """

    num_kernels: int = 8
    router: nn.Module | None = None
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer; see `DenseLayer.apply_conv`."""
        return self.apply_conv(CondConv, inputs, context)


class Routing(nn.Module):
    """Applies a sigmoid to the router's logits and sows it as `weights`, like the attention of others."""

    @nn.compact
    def __call__(self, logits: Array) -> Array:
        """Computes the weights of the experts, `[B, K]`."""
        mix = nn.sigmoid(logits)
        self.sow("intermediates", "weights", {"kernel": mix})
        return mix
