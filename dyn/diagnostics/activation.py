"""Class activation maps (Grad-CAM)."""

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
    """Computes class activation maps: the evidence for a class at each position of a layer (Grad-CAM).

        M[b, p] = ReLU(sum_c w[b, c] A[b, p, c]),    w[b, c] = mean over p of dy_b / dA[b, p, c]

    where A is the layer's output, p its positions, c its features, and y_b the logit of the class. If a
    model classifies each pixel, y_b is the sum of the class's logits over all pixels. The gradient is taken
    of a zero that is added to the layer's output, so the model needs no change.

    Args:
        model: maps `(variables, inputs)` to logits `[B, classes]` or `[B, *pixels, classes]`.
        variables: variables of the model.
        inputs: `[B, ...]`.
        classes: `[B]` integers, one class for each input.
        layer: path of a submodule, such as `stage3_block2`; `layer_outputs` lists them. Its output, or
            the first array of its output, is `[B, *spatial, features]`.

    Returns:
        `[B, *spatial]`, zero or more, in units of the logit; in float32 or wider.

    Raises:
        ValueError: if the model has no such layer or applies it several times, or if there is not one class
            for each input.

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
            f"classes must have one class for each of the {len(inputs)} inputs, shape "
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
        intermediates: Any = state.get("intermediates", {})
        captured: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(intermediates))
        outputs = captured.get((*layer.split("/"), "__call__"), ())
        if len(outputs) != 1:
            raise ValueError(
                _explain_unusable(layer, len(outputs), layer_outputs(model, variables, inputs))
            )
        return jax.tree.leaves(outputs[0])[0], logits

    def score(added: Array) -> tuple[Array, Array]:
        features, logits = features_and_logits(added)
        index = classes.reshape(-1, *(1,) * (logits.ndim - 1))
        # In inference inputs do not interact, so the sum has the gradient of each of them.
        return jnp.sum(jnp.take_along_axis(logits, index, axis=-1)), features

    shape, _ = jax.eval_shape(features_and_logits, 0.0)
    gradient, features = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    dtype = float32_or_wider(features)
    spatial = tuple(range(1, features.ndim - 1))
    weights = jnp.mean(gradient, axis=spatial, dtype=dtype, keepdims=True)
    return nn.relu(jnp.sum(weights * features.astype(dtype), axis=-1))


def _explain_unusable(layer: str, times: int, layers: Mapping[str, Any]) -> str:
    """Explains why a layer that is applied so many times has no class activation map."""
    if times:
        return f"the model applies {layer} {times} times; choose a layer that it applies once."
    similar = difflib.get_close_matches(layer, layers, n=1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"its layers are {', '.join(layers)}."
    return f"the model has no layer {layer!r}; {hint}"
