"""Looking at a model: how many parameters it has, and how many multiply-adds it takes."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core as jex_core


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
