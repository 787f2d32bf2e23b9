"""The context that the attention of a network's convolutions looks at: the field `context` of networks."""

from collections.abc import Callable

import jax
from jax.tree_util import Partial

from dyn.layers.attention import global_average
from dyn.layers.kernel_representation import KernelRepresentation, append_state
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array

ContextFn = Callable[[str, Array, Array, Array | None], tuple[dict[str, Array], Array | None]]
"""`context_fn(layer, block_input, x, state)`: what a convolution takes in addition to its input x.

It returns the extra inputs, `{}` or `{"context": ...}`, and the carried state after the convolution.
"""


def make_context_fn(context: str, features: int, spatial_axes: int) -> ContextFn:
    """Returns the `ContextFn` of a network; call it in the network's compact method.

    Args:
        context: 'input', 'block', 'carried' or 'carried_pixels'; see `ResNet`.
        features: size of the carried state, the submodule `representation`.
        spatial_axes: number of spatial axes.
    """
    representation = None
    if context in ("carried", "carried_pixels"):
        representation = KernelRepresentation(
            features, spatial_axes=spatial_axes, name="representation"
        )
    # A `Partial` shows its modules to `call_block`.
    return Partial(compute_extra_inputs, context=context, representation=representation)


def compute_extra_inputs(
    layer: str,
    block_input: Array,
    x: Array,
    state: Array | None,
    *,
    context: str = "input",
    representation: KernelRepresentation | None = None,
) -> tuple[dict[str, Array], Array | None]:
    """Computes the extra inputs of a convolution by the field `context`; with those bound, a `ContextFn`."""
    match context:
        case "input":
            return {}, None
        case "block":
            axes = block_input.ndim - 2
            mean = global_average(block_input, axes, float32_or_wider(block_input))
            return {"context": mean}, None
        case "carried" if representation is not None:
            state = representation(x, state, layer=layer)
            return {"context": state}, state
        case "carried_pixels" if representation is not None:
            state = representation(x, state, layer=layer)
            return {"context": append_state(x, state)}, state
    raise ValueError(
        f"context={context!r} is unknown: write 'input', 'block', 'carried' or 'carried_pixels'."
    )
