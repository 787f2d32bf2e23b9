"""The base of every layer that stands in for `nn.Dense`: its fields, and the way to the convolutions.

A dense layer is a convolution of tokens whose kernel has one tap. `DynamicDense`, `CondDense` and
`WarehouseDense` are their convolutions, with the same formulas, lowerings and parameters: a matrix is a
kernel `[1, I, O]`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.convolution import ConvLayer, flatten_batch, resolve_context
from dyn.layers.fields import CheckedModule
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


class DenseLayer(CheckedModule):
    """`nn.Dense`'s fields, with its names, order, defaults and meaning.

    All dense layers take inputs `[*batch, *tokens, I]` and a context `[*batch, D]`, or none for the mean of
    the inputs over their tokens: all tokens of a sample share its matrix.

    Attributes:
        features: number of output features.
        use_bias: whether to add a bias.
        dtype: dtype of the product; None for what inputs and parameters promote to.
        param_dtype: dtype of the parameters.
        precision: as in `jax.lax.dot_general`.
        kernel_init: initialises each candidate matrix separately.
        bias_init: initialises the bias.
        token_axes: number of axes before the features whose positions share a matrix. With 0 every vector
            has its own: for classifiers. With 1 the tokens of a sequence `[*batch, T, I]` share one.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    token_axes: int = dataclasses.field(default=0, kw_only=True)

    def flatten_inputs(self, inputs: Array) -> tuple[Array, tuple[int, ...]]:
        """Merges all batch axes into one: returns `[B, *tokens, I]` and the shape of the merged axes.

        Raises:
            ValueError: if the inputs have too few axes.
        """
        if not 0 <= self.token_axes < inputs.ndim:
            raise ValueError(
                f"token_axes={self.token_axes} needs inputs [*batch, *tokens, features] with as many axes of "
                f"tokens; got shape {inputs.shape}."
            )
        return flatten_batch(inputs, self.token_axes + 1)

    def flatten_context(self, context: Array | None, x: Array, batch: tuple[int, ...]) -> Array:
        """Returns the context of attention, `[B, D]`: the one passed, or the mean of the inputs over tokens.

        Args:
            context: `[*batch, D]` or None.
            x: the flat inputs, `[B, *tokens, I]`.
            batch: shape of the batch axes that the inputs had.

        Raises:
            ValueError: if the context has other batch axes than the inputs.
        """
        advice = (
            f"{type(self).__name__} has token_axes={self.token_axes}: set how many axes of the inputs share "
            "one matrix."
        )
        return resolve_context(context, x, batch, float32_or_wider(x), advice)

    def apply_conv(self, conv: type[ConvLayer], inputs: Array, context: Array | None) -> Array:
        """Applies a convolution whose kernel has one tap; its fields and parameters are the layer's.

        Args:
            conv: the class of the convolution; it gets the fields that both have.
            inputs: `[*batch, *tokens, I]`.
            context: what attention looks at, `[*batch, D]`; None for the mean of the inputs over tokens.

        Returns:
            `[*batch, *tokens, features]`.

        Raises:
            ValueError: if the inputs have too few axes, or the context other batch axes.
        """
        x, batch = self.flatten_inputs(inputs)
        context = self.flatten_context(context, x, batch)
        own = {field.name for field in dataclasses.fields(self)} - {"parent", "name"}
        shared = [field.name for field in dataclasses.fields(conv) if field.name in own]
        layer = conv(kernel_size=(1,), padding=0, **{name: getattr(self, name) for name in shared})
        nn.share_scope(self, layer)
        tokens = math.prod(x.shape[1:-1])
        y = layer(x.reshape(x.shape[0], tokens, x.shape[-1]), context)
        return y.reshape(*inputs.shape[:-1], self.features)
