"""A state carried across layers, which gives each of them the context of its attention.

A reconstruction, without claim of parity, of the Kernel Representation of Zhou and Ng: Kernel
Representation for Dynamic Networks. BMVC 2024. It follows the description in Bhati and Sherawat,
Comprehensive Study Dynamic CNN (Virginia Tech): a vector is updated from layer to layer by the global pool
of the current features, the history of earlier layers and learned parameters, and a light generator turns
it into attention. The residual update, the sizes and the initialisations are our choice.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import ATTENTION_PRECISION, global_average
from dyn.layers.convolution import flatten_batch
from dyn.layers.fields import CheckedModule
from dyn.layers.norms import LayerNorm
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.sharding import automate_sharding, mesh_axes, shard_batch_like

Array = jax.Array


class KernelRepresentation(CheckedModule):
    """Updates the state h that is carried across layers; pass it to any layer as `context`.

        h_l = h_{l-1} + MLP([LN(h_{l-1}); GAP(x_l) U_l])

    h_0 is learned, all layers share LN and the MLP (one hidden layer, ReLU), and each layer has its own U_l,
    because the inputs have different numbers of features. Make one module in the network, and call it
    before each layer, with the name of that layer:

        h = representation(x, layer="conv1")
        x = ODConv(64, (3, 3), name="conv1")(x, context=h)
        h = representation(x, h, layer="conv2")
        x = PixelDynamicConv(64, (3, 3), name="conv2")(x, context=append_state(x, h))

    Parameters: `initial (d,)`, `norm/{scale,bias}`, `hidden/{kernel,bias}`, `update/{kernel,bias}`, and
    `contribution_<layer>/kernel (I, d)`.

    Attributes:
        features: d, size of the state.
        hidden: size of the hidden layer; None for d.
        spatial_axes: number of spatial axes of the layers' inputs.
        dtype: dtype of the state; None for float32, or wider if the inputs are.
        param_dtype: dtype of the parameters.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from dyn.layers import ODConv
        >>> from dyn.layers.kernel_representation import KernelRepresentation
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         representation = KernelRepresentation(features=16)
        ...         h = representation(x, layer="conv1")
        ...         x = nn.relu(ODConv(8, (3, 3), name="conv1")(x, context=h))
        ...         h = representation(x, h, layer="conv2")
        ...         return ODConv(8, (3, 3), name="conv2")(x, context=h)
        >>> Net().init_with_output(jax.random.key(0), jnp.ones((2, 9, 9, 3)))[0].shape
        (2, 9, 9, 8)
    """

    features: int = 64
    hidden: int | None = None
    spatial_axes: int = 2
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, state: Array | None = None, *, layer: str) -> Array:
        """Updates the state with the input of a layer.

        Args:
            x: the layer's input, `[*batch, *spatial, I]`.
            state: the state of the layer before, `[*batch, d]`; None for the learned initial state.
            layer: name of the layer. Calls with the same name share one U_l.

        Returns:
            The state for this layer, `[*batch, d]`.

        Raises:
            ValueError: if the input has too few axes, or the state has another shape.
        """
        if x.ndim <= self.spatial_axes:
            raise ValueError(
                f"x must be [*batch, *spatial, I] with spatial_axes={self.spatial_axes}; got shape "
                f"{x.shape}."
            )
        x, batch = flatten_batch(x, self.spatial_axes + 1)
        initial = self.param(
            "initial", nn.initializers.normal(1.0), (self.features,), self.param_dtype
        )
        dtype = float32_or_wider(x, initial) if self.dtype is None else jnp.dtype(self.dtype)
        if state is None:
            state = jnp.broadcast_to(initial, (*batch, self.features))
            state = shard_batch_like(state, x)
        if state.shape != (*batch, self.features):
            raise ValueError(
                f"state must be [*batch, d] = {(*batch, self.features)}, as returned for the layer before; "
                f"got shape {state.shape}."
            )
        state = flatten_batch(state.astype(dtype), 1)[0]

        types = {"dtype": dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, precision=ATTENTION_PRECISION, **types)
        pooled = global_average(x, x.ndim - 2, dtype)
        name = f"contribution_{layer}"
        contribution = dense(self.features, use_bias=False, name=name)(pooled)
        history = LayerNorm(name="norm", **types)(state)
        z = jnp.concatenate([history, contribution], axis=-1)
        z = nn.relu(dense(self.hidden or self.features, name="hidden")(z))
        # If it started at zero, no layer's contribution would have a gradient at first.
        state = state + dense(self.features, name="update")(z)
        return state.reshape(*batch, self.features)


def append_state(x: Array, state: Array) -> Array:
    """Appends the state to the features at each position: the context of pixel-wise attention.

    Args:
        x: `[*batch, *spatial, I]`.
        state: `[*batch, d]`.

    Returns:
        `[*batch, *spatial, I + d]`, in float32 or wider.
    """
    dtype = float32_or_wider(x, state)
    spatial = x.ndim - state.ndim

    def append(x: Array, state: Array) -> Array:
        state = state.reshape(*state.shape[:-1], *(1,) * spatial, state.shape[-1])
        state = jnp.broadcast_to(state.astype(dtype), (*x.shape[:-1], state.shape[-1]))
        return jnp.concatenate([x.astype(dtype), state], axis=-1)

    return automate_sharding(append, x, state, axes=mesh_axes(x)[:-1])


beside = append_state  # the former name
