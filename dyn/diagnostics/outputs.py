"""Output shapes of the submodules of a model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def layer_outputs(model: nn.Module, variables: Any, inputs: Any) -> dict[str, tuple[int, ...]]:
    """Returns the output shape of each submodule, in the order in which they return; computes nothing.

    Args:
        model: applied to `(variables, inputs)`.
        variables: variables of the model, arrays or their shapes.
        inputs: input of the model, an array or its shape.

    Returns:
        `{path: shape}` with paths such as `stage1_block1/conv2`, and the shape of the first array that the
        submodule returns (a block of `dyn.models.ResNet` returns features and a state). For a submodule
        that is applied several times, the last shape.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from dyn.diagnostics import layer_outputs
        >>> net = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, nn.Dense(2)])
        >>> x = jnp.ones((1, 5, 5, 3))
        >>> layer_outputs(net, net.init(jax.random.key(0), x), x)
        {'layers_0': (1, 5, 5, 8), 'layers_2': (1, 5, 5, 2)}
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def record(function: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result = function(*args, **kwargs)
        arrays = jax.tree.leaves(result)
        if context.method_name == "__call__" and context.module.path and arrays:
            path = "/".join(context.module.path)
            shapes.pop(path, None)  # so that it moves to the end of the order
            shapes[path] = jnp.shape(arrays[0])
        return result

    def apply(variables: Any, inputs: Any) -> Any:
        with nn.intercept_methods(record):
            return model.apply(variables, inputs)

    jax.eval_shape(apply, variables, inputs)
    return shapes
