"""What the submodules of a model return."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def layer_outputs(model: nn.Module, variables: Any, inputs: Any) -> dict[str, tuple[int, ...]]:
    """The shape of what each submodule returns, in the order in which they return; nothing is computed.

    Args:
        model: applied to `(variables, inputs)`.
        variables: the model's, arrays or their shapes.
        inputs: what the model takes, an array or its shape.

    Returns:
        The submodule's path, such as `stage1_block1/conv2`, to the shape of the first array it returns
        (a block of `dyn.models.ResNet` returns a state beside its features). Of a submodule that is
        applied several times, the last shape.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from dyn.diagnostics import layer_outputs
        >>> net = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, nn.Dense(2)])
        >>> x = jnp.ones((1, 5, 5, 3))
        >>> layer_outputs(net, net.init(jax.random.key(0), x), x)
        {'layers_0': (1, 5, 5, 8), 'layers_2': (1, 5, 5, 2)}
    """
    shapes = {}

    def look(function: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result = function(*args, **kwargs)
        arrays = jax.tree.leaves(result)
        if context.method_name == "__call__" and context.module.path and arrays:
            path = "/".join(context.module.path)
            shapes.pop(path, None)  # back to the end of the order
            shapes[path] = jnp.shape(arrays[0])
        return result

    def apply(variables: Any, inputs: Any) -> Any:
        with nn.intercept_methods(look):
            return model.apply(variables, inputs)

    jax.eval_shape(apply, variables, inputs)
    return shapes
