"""Squeeze-and-excitation: scales the channels of its input by the input's mean over space.

Hu, Shen, Sun: Squeeze-and-Excitation Networks. CVPR 2018. https://arxiv.org/abs/1709.01507

Deviations from the authors' networks: any number of spatial axes, and context from elsewhere; weights
start as those of the other attention heads here, normal with variance 2 / fan_out.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import apply_head, attention_dtype, squeezed_size
from dyn.layers.convolution import resolve_context
from dyn.layers.fields import CheckedModule
from dyn.ops.dynamic_conv import expand_over_space

Array = jax.Array


class SqueezeExcite(CheckedModule):
    """Scales the channels of each input.

        y = s * x,    s = sigmoid(W_2 ReLU(W_1 context + b_1) + b_2)

    In a residual network it follows the last norm of a block's residual branch, before the sum.

    Attributes:
        reduction: size of the squeezed vector, as a share of the input's channels.
        min_squeeze: lower bound on that size.
        spatial_axes: number of spatial axes, after any number of batch axes; None: all axes between the
            first and the last are spatial.
        param_dtype: dtype of the parameters. The weights are computed in float32 or wider; the output has
            the input's dtype.
        activation: in place of ReLU: SiLU in EfficientNet.
        gate: in place of the sigmoid: `nn.hard_sigmoid` in MobileNetV3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import SqueezeExcite
        >>> layer = SqueezeExcite()
        >>> x = jnp.ones((2, 8, 8, 64))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> layer.apply(variables, x).shape
        (2, 8, 8, 64)
    """

    reduction: float = 1 / 16
    min_squeeze: int = 1
    spatial_axes: int | None = None
    param_dtype: Any = jnp.float32
    activation: Callable[[Array], Array] = nn.relu
    gate: Callable[[Array], Array] = nn.sigmoid

    @nn.compact
    def __call__(self, inputs: Array, context: Array | None = None) -> Array:
        """Applies the layer.

        Args:
            inputs: `[B, *spatial, C]`, or `[*batch, *spatial, C]` with `spatial_axes`.
            context: what attention looks at, `[*batch, D]`; None for the mean of the inputs over space.

        Returns:
            An array of the inputs' shape and dtype.

        Raises:
            ValueError: if the inputs have too few axes or are integers, or the context does not fit them.
        """
        x, batch = flatten_features(self, inputs, self.spatial_axes)
        dtype = attention_dtype(x, self.param_dtype)
        context = resolve_context(context, x, batch, dtype).astype(dtype)
        types = {"dtype": dtype, "param_dtype": self.param_dtype}
        squeezed = squeezed_size(x.shape[-1], self.reduction, self.min_squeeze)
        z = self.activation(apply_head("reduce", context, squeezed, **types))
        channels = self.gate(apply_head("expand", z, x.shape[-1], **types))
        self.sow("intermediates", "weights", {"channel": channels})
        return (x * expand_over_space(channels, x)).reshape(inputs.shape)


def flatten_features(
    module: nn.Module, inputs: Array, spatial_axes: int | None
) -> tuple[Array, tuple[int, ...]]:
    """Merges all batch axes into one: returns `[B, *spatial, C]` and the shape of the merged axes.

    Args:
        module: the layer, for error messages.
        inputs: `[B, *spatial, C]`, or `[*batch, *spatial, C]` with `spatial_axes`.
        spatial_axes: number of spatial axes; None: all between the first and the last.

    Raises:
        ValueError: if there are too few axes, or the inputs are integers, which cannot be scaled.
    """
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            f"inputs of {type(module).__name__} must be floating point; got {inputs.dtype}: convert them "
            "first."
        )
    if spatial_axes is None:
        spatial_axes = inputs.ndim - 2
    if spatial_axes < 1 or inputs.ndim < spatial_axes + 1:
        raise ValueError(
            f"{type(module).__name__} needs an input [*batch, *spatial, C] with {max(spatial_axes, 1)} or "
            f"more axes before its channels; got shape {inputs.shape}."
        )
    batch = inputs.shape[: inputs.ndim - spatial_axes - 1]
    return inputs.reshape(math.prod(batch), *inputs.shape[len(batch) :]), batch
