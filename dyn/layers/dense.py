"""The base of every layer that stands in for `nn.Dense`: its fields, and the way to the convolutions.

A dense layer is a convolution of tokens whose kernel has one tap. `DynamicDense`, `CondDense` and
`WarehouseDense` are their convolutions, with the same formulas, lowerings and parameters (a matrix is a kernel
`[1, I, O]`).
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.convolution import ConvLayer, check_context
from dyn.layers.fields import CheckedModule

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

    def split_batch(self, inputs: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the shapes of the batch axes and of the token axes of the inputs.

        Raises:
            ValueError: if the inputs have too few axes.
        """
        if not 0 <= self.token_axes < inputs.ndim:
            raise ValueError(
                f"token_axes={self.token_axes} needs inputs [*batch, *tokens, features] with so many axes of "
                f"tokens; got shape {inputs.shape}."
            )
        end = inputs.ndim - 1 - self.token_axes
        return inputs.shape[:end], inputs.shape[end:-1]

    def check_context(self, context: Array, batch: tuple[int, ...]) -> None:
        """Checks that a context has the batch axes of the inputs.

        Raises:
            ValueError: if it has others.
        """
        check_context(context)
        if context.shape[:-1] != batch:
            raise ValueError(
                f"context must be [*batch, D] with the inputs' batch axes {batch}; got shape "
                f"{context.shape}. token_axes={self.token_axes} axes of the inputs hold tokens."
            )

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
        batch, tokens = self.split_batch(inputs)
        if context is not None:
            self.check_context(context, batch)
        own = {f.name for f in dataclasses.fields(self)} - {"parent", "name"}
        names = [f.name for f in dataclasses.fields(conv) if f.name in own]
        layer = conv(kernel_size=(1,), padding=0, **{name: getattr(self, name) for name in names})
        nn.share_scope(self, layer)
        y = layer(inputs.reshape(*batch, math.prod(tokens), inputs.shape[-1]), context)
        return y.reshape(*batch, *tokens, self.features)
