"""Convolutional block attention: scales the channels of its input, and then its positions.

Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module. ECCV 2018.
https://arxiv.org/abs/1807.06521

Deviations from the authors' code: any number of spatial axes; an optional norm of the spatial gate; weights
start as those of the other attention heads here, normal with variance 2 / fan_out.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.layers.attention import (
    apply_head,
    attention_dtype,
    global_average,
    he_normal_fan_out,
    reduce_max,
    squeezed_size,
)
from dyn.layers.fields import CheckedModule
from dyn.layers.norms import apply_batch_norm
from dyn.layers.squeeze_excite import flatten_features
from dyn.ops import platforms
from dyn.ops.dtypes import broadcast_weights
from dyn.ops.dynamic_conv import expand_over_space
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


class CBAM(CheckedModule):
    """Scales the channels and then the positions of each input.

        u = x * sigmoid(M(mean of x over space) + M(max of x over space))
        y = u * sigmoid(norm(conv([max of u over channels, mean of u over channels])))

    with M(v) = W_2 ReLU(W_1 v + b_1) + b_2.

    In a residual network it follows the last norm of a block's residual branch, before the sum. The norm
    of the spatial gate starts with scale zero, as in the authors' networks: every position is scaled by
    one half at first. Without that norm (for instance in spectrally normalised networks), the gate has an
    effect from the start.

    Attributes:
        reduction: size of the channel gate's hidden vector, as a share of the channels.
        min_squeeze: lower bound on that size.
        kernel_size: size of the spatial gate's kernel along every spatial axis.
        spatial_norm: 'batch' (the authors') or 'none'.
        use_bias: whether the channel gate has b_1 and b_2.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        spatial_axes: number of spatial axes, after any number of batch axes; None: all axes between the
            first and the last are spatial.
        param_dtype: dtype of the parameters. The weights are computed in float32 or wider; the output has
            the input's dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import CBAM
        >>> layer = CBAM()
        >>> x = jnp.ones((2, 8, 8, 64))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 8, 8, 64)
    """

    reduction: float = 1 / 16
    min_squeeze: int = 1
    kernel_size: int = 7
    spatial_norm: str = "batch"
    use_bias: bool = True
    use_running_average: bool | None = None
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
            ValueError: if the inputs have too few axes or are integers, for an unknown norm, and for batch
                statistics of a single number.
        """
        x, _ = flatten_features(self, inputs, self.spatial_axes)
        types = {"dtype": attention_dtype(x, self.param_dtype), "param_dtype": self.param_dtype}
        channels = ChannelGate(
            squeezed_size(x.shape[-1], self.reduction, self.min_squeeze),
            self.use_bias,
            **types,
            name="channel",
        )(x)
        x = x * expand_over_space(channels, x)
        spatial = SpatialGate(
            self.kernel_size,
            self.spatial_norm,
            self.use_running_average,
            **types,
            name="spatial",
        )(x)
        self.sow("intermediates", "weights", {"channel": channels, "spatial": spatial})
        return (x * broadcast_weights(spatial[..., None], x)).reshape(inputs.shape)


def convolve_batch(inputs: Array, kernel: Array, *args: Any, **fields: Any) -> Array:
    """Computes `jax.lax.conv_general_dilated`, and its gradient also over a sharded axis of `jax.vmap`."""

    def convolve(inputs: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(inputs, kernel, *args, **fields)

    return automate_sharding(convolve, inputs, kernel, axes=mesh_axes(inputs)[:-1])


def convolve_rows(inputs: Array, kernel: Array, *args: Any, **fields: Any) -> Array:
    """Computes a 'SAME' convolution of few features by one of whole rows, as a TPU's matrix unit likes it.

        z[h] = sum_t m[h + t] B[t],    B[t][w c, v] = W[t, w - v, c]

    where m[h] is a row of W c numbers and B a matrix with a band for each step along the other axes. The
    matrix unit multiplies 128 by 128 numbers at a time, of which two features fill two.

    Args:
        inputs: `[B, *spatial, C]`.
        kernel: `[*k, C, 1]`, of odd sizes.
        args, fields: the other arguments of `jax.lax.conv_general_dilated`, of which `precision` is used.
    """
    *outer, width, features = inputs.shape[1:]
    size = kernel.shape[-3]
    distance = np.arange(width)[:, None] - np.arange(width) + size // 2
    band = jnp.asarray(distance == np.arange(size)[:, None, None], kernel.dtype)
    matrix = jnp.einsum("...tc,tio->...ico", kernel[..., 0], band)
    matrix = matrix.reshape(*kernel.shape[:-3], width * features, width)
    axes = "0123456789"[: len(outer)]

    def convolve(inputs: Array, matrix: Array) -> Array:
        rows = inputs.reshape(*inputs.shape[:-2], width * features)
        z = lax.conv_general_dilated(
            rows,
            matrix,
            (1,) * len(outer),
            "SAME",
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            precision=fields.get("precision"),
        )
        return z[..., None]

    return automate_sharding(convolve, inputs, matrix, axes=mesh_axes(inputs)[:-1])


class ChannelGate(nn.Module):
    """Computes channel weights (section 3, equation 2 of the paper): `[B, *spatial, C]` to `[B, C]`."""

    squeezed: int
    use_bias: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Computes the weights of the channels from their means and maxima over space."""
        types = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "use_bias": self.use_bias,
        }
        mean = global_average(x, x.ndim - 2, self.dtype)
        maximum = reduce_max(x, tuple(range(1, x.ndim - 1))).astype(self.dtype)
        # Mean and maximum pass through the same two layers.
        z = nn.relu(apply_head("reduce", jnp.stack([mean, maximum]), self.squeezed, **types))
        return nn.sigmoid(apply_head("expand", z, x.shape[-1], **types).sum(0))


class SpatialGate(nn.Module):
    """Computes position weights (section 3, equation 3): `[B, *spatial, C]` to `[B, *spatial]`."""

    kernel_size: int
    norm: str
    use_running_average: bool | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Computes the weights of the positions from the maxima and means over the channels around them."""
        if self.norm not in ("batch", "none"):
            raise ValueError(f"spatial_norm={self.norm!r} is unknown: write 'batch' or 'none'.")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        mean = jnp.mean(x, axis=-1, dtype=self.dtype)
        z = jnp.stack([reduce_max(x, -1).astype(self.dtype), mean], axis=-1)
        is_for_rows = platforms.find_platform() == "tpu" and self.kernel_size % 2 == 1
        # Its precision is the default: at each position, the highest would double the cost of the layer.
        z = nn.Conv(
            1,
            (self.kernel_size,) * (x.ndim - 2),
            use_bias=False,
            kernel_init=he_normal_fan_out,
            conv_general_dilated=convolve_rows if is_for_rows else convolve_batch,
            **types,
            name="conv",
        )(z)
        if self.norm == "batch":
            z = apply_batch_norm(
                "norm",
                z,
                use_running_average=self.use_running_average,
                instead="use spatial_norm='none'",
                momentum=0.99,  # torch's 0.01, ten times as slow as its default
                scale_init=nn.initializers.zeros_init(),
                **types,
            )
        return nn.sigmoid(z[..., 0])
