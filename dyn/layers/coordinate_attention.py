"""Coordinate attention: scales each channel by a weight per row and a weight per column.

Hou, Zhou, Feng: Coordinate Attention for Efficient Mobile Network Design. CVPR 2021.
https://arxiv.org/abs/2103.02907

Deviations from the authors' code: any number of spatial axes; a layer norm by default, as in all attention
here; weights start as those of the other attention heads, normal with variance 2 / fan_out.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import AttentionBranch, attention_dtype, round_to_multiple, squeezed_size
from dyn.layers.fields import CheckedModule
from dyn.layers.squeeze_excite import flatten_features
from dyn.ops.dtypes import broadcast_weights
from dyn.ops.sharding import automate_sharding

Array = jax.Array


class CoordinateAttention(CheckedModule):
    """Scales each channel at each position by one weight for every spatial axis.

        y[i, j] = x[i, j] * sigmoid(V_0 q_0[i] + c_0) * sigmoid(V_1 q_1[j] + c_1)
        q_a = hard_swish(norm(U m_a + b)),    m_0 = mean of x over columns, m_1 = mean of x over rows

    for pictures (equations 4 to 8 of the paper); U, b and the norm, over rows and columns together, are
    shared. With other numbers of spatial axes, m_a is the mean over all axes but a.

    In a residual network it follows the last norm of a block's residual branch, before the sum. It sows
    `axis0`, `axis1`, ...: the weights `[B, n, C]` along each axis.

    The authors' layer has a batch norm, and max(8, C // 32) squeezed numbers, which is the default here.
    timm's has two thirds of C // 16 in whole eights, and no b and c:
    `CoordinateAttention(reduction=1 / 24, multiple_of=8, use_bias=False, attention_norm="batch")`.

    Attributes:
        reduction: number of squeezed features, as a share of the channels.
        min_squeeze: lower bound on that number.
        multiple_of: rounds that number to the nearest multiple; None to round down.
        use_bias: whether the linear layers have biases.
        attention_norm: 'layer', 'batch' (the authors') or 'none'.
        use_running_average: for 'batch': None uses batch statistics exactly when the collection
            `batch_stats` is mutable.
        spatial_axes: number of spatial axes, after any number of batch axes; None: all axes between the
            first and the last are spatial.
        param_dtype: dtype of the parameters. The weights are computed in float32 or wider; the output has
            the input's dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import CoordinateAttention
        >>> layer = CoordinateAttention()
        >>> x = jnp.ones((2, 8, 8, 64))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 8, 8, 64)
    """

    reduction: float = 1 / 32
    min_squeeze: int = 8
    multiple_of: int | None = None
    use_bias: bool = True
    attention_norm: str = "layer"
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
        features = x.shape[-1]
        squeezed = squeezed_size(features, self.reduction, self.min_squeeze)
        if self.multiple_of is not None:
            squeezed = round_to_multiple(features * self.reduction, self.multiple_of)
            squeezed = max(squeezed, self.min_squeeze)
        gates = AxisGates(
            use_bias=self.use_bias,
            squeezed=squeezed,
            norm=self.attention_norm,
            use_running_average=self.use_running_average,
            dtype=attention_dtype(x, self.param_dtype),
            param_dtype=self.param_dtype,
            name="attention",
        )(x)
        for axis, gate in enumerate(gates, start=1):
            others = [a for a in range(1, x.ndim - 1) if a != axis]
            x = x * broadcast_weights(jnp.expand_dims(gate, others), x)
        return x.reshape(inputs.shape)


class AxisGates(AttentionBranch):
    """Computes the weights along each spatial axis: `[B, *spatial, C]` to one `[B, n, C]` per axis."""

    use_bias: bool

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """Computes the weights from the means over all axes but one."""
        heads = {"use_bias": self.use_bias}
        means = automate_sharding(partial(average_along_axes, dtype=self.dtype), x)
        z = self.apply_head("reduce", means, self.squeezed, **heads)
        q = nn.hard_swish(self.normalise(z))
        gates, start = [], 0
        for n, size in enumerate(x.shape[1:-1]):
            part = q[:, start : start + size]
            gates.append(nn.sigmoid(self.apply_head(f"expand{n}", part, x.shape[-1], **heads)))
            start += size
        self.sow_weights(**{f"axis{n}": gate for n, gate in enumerate(gates)})
        return gates


def average_along_axes(x: Array, dtype: jnp.dtype) -> Array:
    """Averages over all spatial axes but one, for each: `[B, *spatial, C]` to `[B, sum of spatial, C]`."""
    axes = range(1, x.ndim - 1)
    means = [jnp.mean(x, tuple(a for a in axes if a != axis), dtype=dtype) for axis in axes]
    return jnp.concatenate(means, axis=1)
