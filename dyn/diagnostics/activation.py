"""Which places of the input speak for a class."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from dyn.diagnostics.outputs import layer_outputs
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


def class_activation(
    model: nn.Module, variables: Any, inputs: Array, classes: Array, layer: str
) -> Array:
    """Which places of a layer's output speak for a class (Grad-CAM).

        M[b, p] = ReLU(sum_c w[b, c] A[b, p, c]),    w[b, c] = mean over p of dy_b / dA[b, p, c]

    where A is the layer's output, p its positions, c its features, and y_b the logit of the class asked
    for. Where a model gives each pixel a class, y_b is the sum of the class's logits over all pixels.
    The gradient is that of a zero which is added to the layer's output, so the model needs no change.

    Args:
        model: applied to `(variables, inputs)`; gives logits `[B, classes]` or `[B, *pixels, classes]`.
        variables: the model's.
        inputs: `[B, ...]`.
        classes: `[B]` integers, the class asked about for each input.
        layer: the submodule's path, such as `stage3_block2`; `layer_outputs` lists them. Its output, or
            the first array of it, is `[B, *spatial, features]`.

    Returns:
        `[B, *spatial]`, zero or more, in units of the logit; in float32 or wider.

    Raises:
        ValueError: if the model has no such layer or applies it several times, or a class is missing.

    Source:
        Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM: Visual Explanations from Deep Networks
        via Gradient-based Localization. ICCV 2017. https://arxiv.org/abs/1610.02391 (For pixels:
        Vinogradova, Dibrov, Myers: Towards Interpretable Semantic Segmentation via Gradient-weighted
        Class Activation Mapping. AAAI 2020. https://arxiv.org/abs/2002.11434)

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.diagnostics import class_activation
        >>> from dyn.models import BasicBlock, ResNet
        >>> net = ResNet((1, 1), BasicBlock, num_classes=10, width=4, stem="small")
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = jax.jit(net.init)(jax.random.key(0), x)
        >>> class_activation(net, variables, x, jnp.array([3, 7]), layer="stage2_block1").shape
        (2, 4, 4)
    """
    if classes.shape != inputs.shape[:1]:
        raise ValueError(
            f"classes must name one class for each of the {len(inputs)} inputs, shape "
            f"{inputs.shape[:1]}; got shape {classes.shape}."
        )

    def is_layer(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) == layer

    def features_and_logits(added: Array | float) -> tuple[Array, Array]:
        def add(function: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            result = function(*args, **kwargs)
            if is_layer(context.module, context.method_name):
                (features, *others), structure = jax.tree.flatten(result)
                result = jax.tree.unflatten(structure, [features + added, *others])
            return result

        with nn.intercept_methods(add):
            logits, state = model.apply(
                variables, inputs, capture_intermediates=is_layer, mutable=["intermediates"]
            )
        captured = traverse_util.flatten_dict(dict(state.get("intermediates", {})))
        outputs = captured.get((*layer.split("/"), "__call__"), ())
        if len(outputs) != 1:
            raise ValueError(
                _unusable(layer, len(outputs), layer_outputs(model, variables, inputs))
            )
        return jax.tree.leaves(outputs[0])[0], logits

    def score(added: Array) -> tuple[Array, Array]:
        features, logits = features_and_logits(added)
        of_class = classes.reshape(-1, *(1,) * (logits.ndim - 1))
        # Inputs do not meet in a network that is evaluated: the sum has the gradient of each.
        return jnp.sum(jnp.take_along_axis(logits, of_class, axis=-1)), features

    shape, _ = jax.eval_shape(features_and_logits, 0.0)
    gradient, features = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    wide = float32_or_wider(features)
    space = tuple(range(1, features.ndim - 1))
    weights = jnp.mean(gradient, axis=space, dtype=wide, keepdims=True)
    return nn.relu(jnp.sum(weights * features.astype(wide), axis=-1))


def _unusable(layer: str, times: int, layers: Mapping[str, Any]) -> str:
    """Why there is no class activation of a layer."""
    if times:
        return (
            f"the model applies {layer} {times} times: which of the outputs is meant is not clear."
        )
    near = difflib.get_close_matches(layer, layers, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(layers)}."
    return f"the model has no layer {layer!r}; {hint}"
