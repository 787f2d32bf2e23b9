"""What every layer that stands in for `nn.Conv` does with its arguments."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def kernel_shape(kernel_size: int | Sequence[int], inputs: Array) -> tuple[int, ...]:
    """The kernel size as a tuple, one number for each spatial axis.

    Args:
        kernel_size: as in `nn.Conv`, where a bare number means one spatial axis.
        inputs: the layer's input, `[*batch, *spatial, I]`.

    Raises:
        ValueError: where `nn.Conv` would quietly convolve one axis of a picture, or where the input has
            too few axes.
    """
    if isinstance(kernel_size, int):
        if inputs.ndim > 3:
            pictures = ", ".join([str(kernel_size)] * (inputs.ndim - 2))
            raise ValueError(
                f"kernel_size={kernel_size} means one spatial axis, but the input has shape "
                f"{inputs.shape}: write kernel_size=({pictures}), or kernel_size=({kernel_size},) "
                "for a 1-D convolution over its last spatial axis."
            )
        kernel_size = (kernel_size,)
    size = tuple(kernel_size)
    if not 1 <= len(size) <= 3 or inputs.ndim < len(size) + 1:
        raise ValueError(
            f"kernel_size={size} needs an input [*batch, *spatial, features] with {len(size)} spatial "
            f"axes (1, 2 or 3 are possible); got shape {inputs.shape}."
        )
    return size


def flatten_batch(x: Array, trailing: int) -> tuple[Array, tuple[int, ...]]:
    """Makes one batch axis of any number of them: (`[B, ...]`, the axes it stands for)."""
    batch = x.shape[: x.ndim - trailing]
    return x.reshape(math.prod(batch), *x.shape[x.ndim - trailing :]), batch


def compute_dtype(dtype: jnp.dtype | None, inputs: Array, param_dtype: jnp.dtype) -> jnp.dtype:
    """The dtype a convolution runs in: `dtype`, or None for what inputs and parameters promote to."""
    if dtype is not None:
        return jnp.dtype(dtype)
    with jax.numpy_dtype_promotion("standard"):  # also where the caller has forbidden it elsewhere
        return jnp.promote_types(inputs.dtype, param_dtype)
