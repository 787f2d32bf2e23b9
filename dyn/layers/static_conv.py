"""Static convolution, computed by the lowering that is fastest for its shapes."""

import flax.linen as nn
import jax

from dyn.layers.convolution import ConvLayer

Array = jax.Array


class Conv(ConvLayer):
    """Computes `nn.Conv`, with its parameters and numbers, by the lowerings of the dynamic layers.

        y = conv(x, W) + b

    XLA's convolution is slow for small pictures on a CPU; a matrix product over patches is not. Use this
    layer in the static network that a dynamic one is compared with.

    Attributes:
        features: number of output features; `nn.Conv`'s other fields follow, with its defaults; see
            `ConvLayer`.
        lowering: see `dyn.ops.dynamic_conv`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import Conv
        >>> layer = Conv(features=16, kernel_size=(3, 3), strides=2)
        >>> x = jnp.ones((2, 32, 32, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 16, 16, 16)
    """

    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layer.

        Args:
            inputs: `[*batch, *spatial, I]`, any number of batch axes.

        Returns:
            `[*batch, *out, features]`.

        Raises:
            ValueError: if the kernel or the groups do not fit.
        """
        x, batch = self.flatten_inputs(inputs)
        kernel = self.param("kernel", self.kernel_init, self.kernel_shape(x), self.param_dtype)
        dtype = self.conv_dtype(x)
        kernel = self.apply_mask(kernel)[None]
        y = self.add_bias(self.convolve(x.astype(dtype), kernel, lowering=self.lowering))
        return y.reshape(*batch, *y.shape[1:])
