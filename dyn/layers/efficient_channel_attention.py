"""Efficient channel attention: scales each channel by the means of the channels next to it.

Wang, Wu, Zhu, Li, Zuo, Hu: ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks.
CVPR 2020. https://arxiv.org/abs/1910.03151

Deviations from the authors' networks: any number of spatial axes; the kernel starts as those of the other
attention heads here, normal with variance 2 / fan_out.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import (
    ATTENTION_PRECISION,
    attention_dtype,
    global_average,
    he_normal_fan_out,
)
from dyn.layers.cbam import convolve_batch
from dyn.layers.fields import CheckedModule
from dyn.layers.squeeze_excite import flatten_features
from dyn.ops.dynamic_conv import expand_over_space

Array = jax.Array


class EfficientChannelAttention(CheckedModule):
    """Scales the channels of each input.

        y = s * x,    s = sigmoid(w * m),    m = mean of x over space

    where w * m is a convolution along the channels, with one kernel of k numbers and zeros beyond the first
    and the last channel. By default k is what the paper computes from C channels (equation 12): the odd
    number at t = (log2(C) + 1) / 2, rounded down and made odd upwards; here at least 3, as in timm.

    In a residual network it follows the last norm of a block's residual branch, before the sum.

    Attributes:
        kernel_size: k, an odd number; None to compute it from the channels.
        spatial_axes: number of spatial axes, after any number of batch axes; None: all axes between the
            first and the last are spatial.
        param_dtype: dtype of the parameters. The weights are computed in float32 or wider; the output has
            the input's dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import EfficientChannelAttention
        >>> layer = EfficientChannelAttention()
        >>> x = jnp.ones((2, 8, 8, 64))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> variables["params"]["conv"]["kernel"].shape
        (3, 1, 1)
        >>> layer.apply(variables, x).shape
        (2, 8, 8, 64)
    """

    kernel_size: int | None = None
    spatial_axes: int | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layer.

        Args:
            inputs: `[B, *spatial, C]`, or `[*batch, *spatial, C]` with `spatial_axes`.

        Returns:
            An array of the inputs' shape and dtype.

        Raises:
            ValueError: if the inputs have too few axes or are integers, or the kernel is not odd.
        """
        x, _ = flatten_features(self, inputs, self.spatial_axes)
        size = self.kernel_size
        if size is None:
            size = choose_kernel_size(x.shape[-1])
        if size < 1 or size % 2 == 0:
            raise ValueError(f"kernel_size={size} must be odd and positive, or None.")
        dtype = attention_dtype(x, self.param_dtype)
        logits = nn.Conv(
            1,
            (size,),
            use_bias=False,
            kernel_init=he_normal_fan_out,
            precision=ATTENTION_PRECISION,
            conv_general_dilated=convolve_batch,
            dtype=dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(global_average(x, x.ndim - 2, dtype)[..., None])
        channels = nn.sigmoid(logits[..., 0])
        self.sow("intermediates", "weights", {"channel": channels})
        return (x * expand_over_space(channels, x)).reshape(inputs.shape)


def choose_kernel_size(channels: int) -> int:
    """Returns the kernel size for a number of channels: 3 for 64, 5 for 128 to 1024, 7 for 2048."""
    size = int(abs(math.log2(channels) + 1) / 2)
    return max(size + 1 - size % 2, 3)
