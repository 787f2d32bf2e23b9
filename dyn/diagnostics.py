"""Looking at a model: what it costs, what its attention does, and which places speak for a class."""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.extend import core as jex_core

from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


def count_parameters(tree: Any) -> int:
    """Number of numbers in a tree of arrays (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_macs(function: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-adds of `function(*args)` by reading its jaxpr; nothing is computed.

    Counted are convolutions and matrix products, those of the attention branches included, with padding
    taps. A dynamic convolution counts as the published numbers do, whatever lowering computes it: the
    convolution once, plus one multiply-add for each number of each of its K > 1 kernels to mix them; a
    pixel-wise mixture has no mixed kernel and counts as K convolutions. Under `jax.grad` and `jax.vmap`
    it counts as what its lowering does. Of a condition the dearest branch counts, of a loop with an
    unknown number of turns one turn. Elementwise work is not counted.

    Args:
        function: for instance `lambda v, x: net.apply(v, x)`.
        args: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
        Multiply-adds for the whole batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.diagnostics import count_macs
        >>> count_macs(jnp.dot, jnp.ones((3, 4)), jnp.ones((4, 5)))
        60
    """
    return _jaxpr_macs(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr_macs(jaxpr: jex_core.Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [v.aval.shape for v in eqn.invars if hasattr(v, "aval")]
        outputs = [v.aval.shape for v in eqn.outvars]
        if eqn.params.get("name") == "_dynamic_conv" and _is_forward(inputs, outputs):
            total += _dynamic_conv_macs(inputs, outputs[0])
        elif name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(
                inputs[0][axis] for axis in contract
            )
        elif name == "conv_general_dilated":
            out_features = eqn.params["dimension_numbers"].rhs_spec[0]
            kernel = inputs[1]
            taps_and_inputs = math.prod(kernel) // kernel[out_features]
            total += math.prod(eqn.outvars[0].aval.shape) * taps_and_inputs
        elif name == "cond":
            total += max(_jaxpr_macs(branch.jaxpr) for branch in eqn.params["branches"])
        else:
            repeats = eqn.params.get("length", 1) if name == "scan" else 1
            total += repeats * sum(map(_jaxpr_macs, _inner_jaxprs(eqn.params)))
    return total


def _is_forward(inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> bool:
    """Whether these are the shapes of `dyn.ops.dynamic_conv` itself, not of its gradient or of a batch.

    `jax.grad` and `jax.vmap` keep the name by which the operation is known, and change its arguments.
    """
    if len(inputs) < 2 or len(outputs) != 1:
        return False
    (x, kernels, *weights), (y,) = inputs, outputs
    possible = (
        (y[0], kernels[0]),
        (*y[:-1], kernels[0]),
        (y[0], *kernels[1:-2]),
    )
    return (
        len(x) == len(y) == len(kernels) - 1
        and (x[0], kernels[-1]) == (y[0], y[-1])
        and (len(weights) > 0 or kernels[0] == 1)
        and all(w in possible for w in weights)
    )


def _dynamic_conv_macs(inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Multiply-adds of `dyn.ops.dynamic_conv` from the shapes of its arguments and its result."""
    kernels = inputs[1]
    num_kernels, one_kernel = kernels[0], math.prod(kernels[1:])
    convolution = math.prod(output[:-1]) * one_kernel
    if num_kernels == 1:
        return convolution
    pixelwise = len(inputs[2]) > 2
    return (
        convolution * num_kernels
        if pixelwise
        else convolution + output[0] * num_kernels * one_kernel
    )


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[jex_core.Jaxpr]:
    """The jaxprs that an equation carries: of a jit, a scan, a checkpoint, a custom gradient, ..."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jex_core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jex_core.Jaxpr):
                yield item


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


def sown_weights(intermediates: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
    """What the layers of this library have sown: each layer's attention weights, by their kind.

    Args:
        intermediates: the collection, from `model.apply(..., mutable=["intermediates"])`.

    Returns:
        Layer to kind (`kernel`, `pixel`, `channel`, `filter`, `spatial`, ...) to weights `[B, ...]`. The
        layer is named by its path; of a layer that is applied several times, the first.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.diagnostics import sown_weights
        >>> from dyn.layers import DynamicConv
        >>> layer, x = DynamicConv(8, (3, 3), num_kernels=4), jnp.ones((2, 6, 6, 3))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> _, state = layer.apply(variables, x, mutable=["intermediates"])
        >>> {k: v["kernel"].shape for k, v in sown_weights(state["intermediates"]).items()}
        {'': (2, 4)}
    """
    found: dict[str, dict[str, Array]] = {}
    # A layer sows a dictionary, as the only element of a tuple.
    for path, values in traverse_util.flatten_dict(dict(intermediates)).items():
        if path[-1] == "weights" and isinstance(values[0], Mapping):
            # The weights of a convolution are sown by its submodule `attention`.
            parents = path[:-2] if path[-2:-1] == ("attention",) else path[:-1]
            found.setdefault("/".join(parents), {}).update(values[0])
    return found


def attention_statistics(weights: Array, dead_below: float = 0.01) -> dict[str, Array]:
    """Whether a layer's attention over its kernels chooses, and which kernels it never uses.

        share_nk = |a_nk| / sum_j |a_nj|

    Args:
        weights: a, `[N, K]` or `[N, *positions, K]`: what the layer has sown for N inputs. Each position
            counts as an input of its own. Weights need not sum to one, and may be gates or negative.
        dead_below: a kernel is dead if no input gives it this share.

    Returns:
        `mean [K]`: of a over the inputs. `spread`: standard deviation of a over the inputs, averaged over
        the kernels; 0 is the same mixture for every input. `entropy`: of the shares, averaged over the
        inputs, 0 (one kernel) to 1 (all alike). `dead [K]`: booleans. In float32 or wider.

    Raises:
        ValueError: if there is no input, or no axis of kernels.

    Example:
        >>> import jax.numpy as jnp
        >>> from dyn.diagnostics import attention_statistics
        >>> found = attention_statistics(jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
        >>> found["dead"].tolist(), round(float(found["entropy"]), 3)  # (log 2 + 0) / 2 / log 3
        ([False, False, True], 0.315)
    """
    if weights.ndim < 2 or weights.size == 0:
        raise ValueError(
            f"weights must be [N, K] or [N, *positions, K]; got shape {weights.shape}."
        )
    kernels = weights.shape[-1]
    a = weights.reshape(-1, kernels).astype(float32_or_wider(weights))
    total = jnp.sum(jnp.abs(a), axis=-1, keepdims=True)
    # Where all gates are off nothing is shared out.
    shares = jnp.abs(a) / jnp.where(total > 0, total, jnp.ones_like(total))
    entropy = jnp.mean(jnp.sum(jax.scipy.special.entr(shares), axis=-1))
    return {
        "mean": jnp.mean(a, axis=0),
        "spread": jnp.mean(jnp.std(a, axis=0)),
        "entropy": entropy / math.log(kernels) if kernels > 1 else entropy,
        "dead": jnp.max(shares, axis=0) < dead_below,
    }
