"""Counts the parameters and multiply-adds of a model, in total and by layer."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util
from jax.extend import core as jex_core

from dyn.diagnostics.outputs import layer_outputs


def count_parameters(tree: Any) -> int:
    """Counts the elements of a tree of arrays (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_macs(function: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-adds of `function(*args)` by reading its jaxpr; computes nothing.

    It counts convolutions (taps on padding included) and matrix products, those of the attention branches
    too, and no elementwise work. A dynamic convolution counts as in published numbers, independently of its
    lowering: one convolution, plus one multiply-add for each element of its K > 1 kernels to mix them; a
    pixel-wise mixture has no mixed kernel and counts as K convolutions. A kernel per position, of
    `convolve_positions`, counts one multiply-add for each tap of each output. Under `jax.grad` and `jax.vmap`
    the operations of its lowering count. A condition counts as its most expensive branch, a loop with an
    unknown number of iterations as one iteration.

    Args:
        function: for instance `lambda v, x: net.apply(v, x)`.
        args: arguments of the function, arrays or `jax.ShapeDtypeStruct`s.

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
    """Parameters, multiply-adds and output shape of a submodule, submodules below it included."""

    parameters: int
    macs: int
    output: tuple[int, ...]


def layer_costs(model: nn.Module, variables: Any, inputs: Any) -> dict[str, Cost]:
    """Returns parameters, multiply-adds and output shape of every submodule; computes nothing.

    Args:
        model: applied to `(variables, inputs)`.
        variables: variables of the model, arrays or their shapes.
        inputs: input of the model, an array or its shape.

    Returns:
        `{path: cost}` with paths such as `stage1_block1/conv2`; `''` is the model itself. A submodule stands
        before those below it, otherwise they are in the order in which they return. Multiply-adds are those
        of `count_macs`, for the whole batch.

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
    outputs[""] = jax.tree.leaves(jax.eval_shape(model.apply, variables, inputs))[0].shape
    parameters, macs = Counter[str](), Counter[str]()
    leaves: dict[str, Any] = traverse_util.flatten_dict(dict(variables["params"]), sep="/")
    for path, value in leaves.items():
        for module in _enclosing_modules(path, outputs):
            parameters[module] += math.prod(value.shape)
    jaxpr = jax.make_jaxpr(model.apply)(variables, inputs).jaxpr
    parts = [path.split("/") for path in outputs]
    prefixes = {"/".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}
    for scope, number in _macs_by_scope(jaxpr).items():
        for module in _enclosing_modules(_module_path(scope, prefixes), outputs):
            macs[module] += number
    # A submodule returns after those below it, but stands before them here.
    order = {path: index for index, path in enumerate(outputs)}
    first: dict[str, int] = {}
    for path, index in order.items():
        for module in _enclosing_modules(path, outputs):
            first.setdefault(module, index)
    paths = sorted(outputs, key=lambda path: (first[path], -order[path]))
    return {path: Cost(parameters[path], macs[path], outputs[path]) for path in paths}


def _module_path(scope: str, known: Set[str]) -> str:
    """Returns the submodule of a named scope: `encoder/conv1` for `Net/Net.encode/encoder/conv1`.

    Flax names scopes after its modules (the model itself after its class) and, with a dot, after methods
    other than `__call__`. A module that shares the variables of the one around it (`flax.linen.share_scope`)
    has a scope and no path.

    Args:
        scope: the named scope.
        known: paths of submodules.
    """
    modules: list[str] = []
    for part in scope.split("/"):
        name, dot, _ = part.partition(".")
        if not dot:
            modules.append(part)
        elif not modules or modules[-1] != name:
            modules.append(name)
    path: list[str] = []
    for name in modules[1:]:
        if "/".join((*path, name)) in known:
            path.append(name)
    return "/".join(path)


def _enclosing_modules(path: str, modules: Mapping[str, Any]) -> list[str]:
    """Lists the modules that contain a path, itself included: `['', 'a', 'a/b', 'a/b/c']` for `a/b/c`."""
    parts = path.split("/")
    prefixes = ("/".join(parts[:length]) for length in range(len(parts) + 1))
    return [prefix for prefix in dict.fromkeys(prefixes) if prefix in modules]


def _macs_by_scope(jaxpr: jex_core.Jaxpr, outer: str = "") -> Counter[str]:
    """Counts multiply-adds by named scope, its parts from the outer to the inner joined by `/`."""
    total = Counter[str]()
    eqns: list[Any] = jaxpr.eqns  # JAX's annotations give an `aval` no shape.
    for eqn in eqns:
        name, inputs = eqn.primitive.name, [v.aval.shape for v in eqn.invars if hasattr(v, "aval")]
        outputs = [v.aval.shape for v in eqn.outvars]
        scope = "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))
        if eqn.params.get("name") == "_dynamic_conv" and _is_forward(inputs, outputs):
            total[scope] += _dynamic_conv_macs(inputs, outputs[0])
        elif eqn.params.get("name") == "_sample_conv" and len(outputs) == 1:
            total[scope] += math.prod(outputs[0][:-1]) * math.prod(inputs[1][1:])
        elif eqn.params.get("name") == "_position_conv" and len(outputs) == 1:
            total[scope] += _position_conv_macs(inputs, outputs[0])
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
            repeats = _count_repeats(name, eqn.params)
            for inner in _inner_jaxprs(eqn.params):
                for inner_scope, number in _macs_by_scope(inner, scope).items():
                    total[inner_scope] += repeats * number
    return total


def _count_repeats(name: str, params: Mapping[str, Any]) -> int:
    """Returns how many times the body of an operation runs, on all devices together."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # each shard of the batch has its own
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _is_forward(inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> bool:
    """Tells whether these are the shapes of `dyn.ops.dynamic_conv` itself.

    `jax.grad` and `jax.vmap` keep the name of the operation and change its arguments.
    """
    if len(inputs) < 2 or len(outputs) != 1:
        return False
    (x, kernels, *weights), (y,) = inputs, outputs
    possible = (
        (y[0], kernels[0]),  # mix
        (*y[:-1], kernels[0]),  # pixel-wise mix
        (y[0], *kernels[1:-2]),  # taps
        (x[0], x[-1]),  # channels
        (y[0], y[-1]),  # filters
    )
    return (
        len(x) == len(y) == len(kernels) - 1
        and (x[0], kernels[-1]) == (y[0], y[-1])
        and (len(weights) > 0 or kernels[0] == 1)
        and all(shape in possible for shape in weights)
    )


def _dynamic_conv_macs(inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Counts the multiply-adds of `dyn.ops.dynamic_conv` from the shapes of its arguments and its result."""
    num_kernels, *kernel = inputs[1]
    kernel_size = math.prod(kernel)
    convolution = math.prod(output[:-1]) * kernel_size
    if num_kernels == 1:
        return convolution
    if len(inputs[2]) > 2:  # pixel-wise
        return convolution * num_kernels
    return convolution + output[0] * num_kernels * kernel_size


def _position_conv_macs(inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Counts the multiply-adds of `dyn.ops.convolve_positions`: each output is a sum over T taps.

    A factor of the kernel is elementwise work. Under `jax.vmap` all arguments have another axis in front, and
    under `jax.grad` they are others.
    """
    kernels = inputs[1] if len(inputs) > 1 else ()
    if kernels[: len(output) - 1] != output[:-1]:
        return 0
    return math.prod(output) * math.prod(kernels[len(output) - 1 : -1])


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[jex_core.Jaxpr]:
    """Yields the jaxprs of an equation: of a jit, a scan, a checkpoint, a custom gradient, ..."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jex_core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jex_core.Jaxpr):
                yield item
