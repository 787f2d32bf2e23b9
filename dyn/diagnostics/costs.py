"""What a model costs: its parameters and multiply-adds, as a whole and layer by layer."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util
from jax.extend import core as jex_core

from dyn.diagnostics.outputs import layer_outputs


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
    return _macs_by_scope(jax.make_jaxpr(function)(*args).jaxpr).total()


class Cost(NamedTuple):
    """Of a submodule and all that is below it."""

    parameters: int
    macs: int
    output: tuple[int, ...]


def layer_costs(model: nn.Module, variables: Any, inputs: Any) -> dict[str, Cost]:
    """Parameters, multiply-adds and the shape of the output of every submodule; nothing is computed.

    Args:
        model: applied to `(variables, inputs)`.
        variables: the model's, arrays or their shapes.
        inputs: what the model takes, an array or its shape.

    Returns:
        The submodule's path, such as `stage1_block1/conv2`, to its cost, what is below it included: from
        the outer to the inner, otherwise in the order in which the submodules return. `''` is the model
        itself. Multiply-adds are counted as by `count_macs`, for the whole batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.diagnostics import layer_costs
        >>> from dyn.models import ResNet18
        >>> net, x = ResNet18(num_classes=10), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        >>> costs = layer_costs(net, jax.eval_shape(net.init, jax.random.key(0), x), x)
        >>> costs["stage1_block1/conv1"]
        Cost(parameters=36864, macs=9437184, output=(1, 16, 16, 64))
    """
    outputs = layer_outputs(model, variables, inputs)
    result = jax.tree.leaves(jax.eval_shape(model.apply, variables, inputs))
    outputs[""] = result[0].shape
    parameters, macs = Counter[str](), Counter[str]()
    for path, value in traverse_util.flatten_dict(dict(variables["params"])).items():
        for above in _above("/".join(path), outputs):
            parameters[above] += math.prod(value.shape)
    for scope, number in _macs_by_scope(
        jax.make_jaxpr(model.apply)(variables, inputs).jaxpr
    ).items():
        for above in _above(_modules(scope), outputs):
            macs[above] += number
    # A submodule returns after those below it, and stands before them in a table.
    order = {path: place for place, path in enumerate(outputs)}
    first: dict[str, int] = {}
    for path, place in order.items():
        for above in _above(path, outputs):
            first.setdefault(above, place)
    paths = sorted(outputs, key=lambda path: (first[path], -order[path]))
    return {path: Cost(parameters[path], macs[path], outputs[path]) for path in paths}


def _modules(scope: str) -> str:
    """The submodule of a named scope, such as `encoder/conv1` of `Net/Net.encode/encoder/conv1`.

    Flax names scopes after its modules, the model itself after its class; and other methods than `__call__`
    besides, behind a dot.
    """
    found: list[str] = []
    for part in scope.split("/"):
        name, dot, _ = part.partition(".")
        if not dot:
            found.append(part)
        elif not found or found[-1] != name:
            found.append(name)
    return "/".join(found[1:])


def _above(path: str, known: Mapping[str, Any]) -> list[str]:
    """The submodules that a path lies in, itself included: `a/b/c` to `['', 'a', 'a/b', 'a/b/c']`."""
    parts = path.split("/")
    prefixes = ("/".join(parts[:length]) for length in range(len(parts) + 1))
    return [prefix for prefix in dict.fromkeys(prefixes) if prefix in known]


def _macs_by_scope(jaxpr: jex_core.Jaxpr, outer: str = "") -> Counter[str]:
    """Multiply-adds by the named scope that they are in, names from the outer to the inner with `/`."""
    total = Counter[str]()
    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [v.aval.shape for v in eqn.invars if hasattr(v, "aval")]
        outputs = [v.aval.shape for v in eqn.outvars]
        scope = "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))
        if eqn.params.get("name") == "_dynamic_conv" and _is_forward(inputs, outputs):
            total[scope] += _dynamic_conv_macs(inputs, outputs[0])
        elif name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            total[scope] += math.prod(outputs[0]) * math.prod(inputs[0][axis] for axis in contract)
        elif name == "conv_general_dilated":
            out_features = eqn.params["dimension_numbers"].rhs_spec[0]
            kernel = inputs[1]
            taps_and_inputs = math.prod(kernel) // kernel[out_features]
            total[scope] += math.prod(outputs[0]) * taps_and_inputs
        elif name == "cond":
            branches = (_macs_by_scope(b.jaxpr, scope) for b in eqn.params["branches"])
            total += max(branches, key=Counter.total)
        else:
            repeats = eqn.params.get("length", 1) if name == "scan" else 1
            for inner in _inner_jaxprs(eqn.params):
                for place, number in _macs_by_scope(inner, scope).items():
                    total[place] += repeats * number
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
        (x[0], x[-1]),
        (y[0], y[-1]),
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
