"""Norms with torch's epsilon and momentum, whose variance is exact for inputs far from zero.

Flax computes a variance as E[x^2] - E[x]^2 unless it is told otherwise. In float32 nothing is left of that
difference where the mean is a thousand times the spread. Here it is E[(x - E[x])^2], in two passes.
"""

import math
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class BatchNorm(nn.BatchNorm):
    """Flax's batch norm with torch's momentum and epsilon, and a variance in two passes."""

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool | None = None, **fields: Any) -> Array:
        """Applies the norm; the arguments are flax's."""
        # Flax promotes the statistics, also if the caller has forbidden it.
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, use_running_average, **fields)


class LayerNorm(nn.LayerNorm):
    """Flax's layer norm with torch's epsilon, and a variance in two passes."""

    epsilon: float = 1e-5
    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: Array, **fields: Any) -> Array:
        """Applies the norm; the arguments are flax's."""
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, **fields)


def apply_batch_norm(
    name: str,
    z: Array,
    *,
    use_running_average: bool | None,
    instead: str,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    momentum: float = 0.9,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> Array:
    """Applies a batch norm that detects training by itself; call it inside a compact method.

    Args:
        name: name of the submodule.
        z: `[B, ..., C]`.
        use_running_average: whether running statistics are used; None: exactly when the collection
            `batch_stats` is not mutable, and a gradient for the parameters then warns.
        instead: what to do if there is nothing to normalise, for the error message.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        momentum: share of the running statistics that a step keeps (1 - torch's).
        scale_init: initialises the scale.

    Raises:
        ValueError: for batch statistics of a single vector.
    """
    module = BatchNorm(
        momentum=momentum,
        scale_init=scale_init,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )
    running = use_running_average
    if running is None:
        running = not module.is_mutable_collection("batch_stats")
    if math.prod(z.shape[:-1]) == 1 and not (running or module.is_initializing()):
        raise ValueError(
            "a batch norm inside attention cannot normalise the one vector of a batch of size 1: its "
            "variance is zero and the attention would ignore the input. Train with two or more "
            f"samples, {instead}, or pass use_running_average=True."
        )
    normed = module(z.astype(dtype), use_running_average=running)
    if running and use_running_average is None:
        warn_if_differentiated(module.variables["params"]["scale"])
    return normed


@jax.custom_jvp
def warn_if_differentiated(parameter: Array) -> Array:
    """Returns the parameter; warns while a program is traced that takes a gradient for it.

    Nothing else tells training from evaluation here. A gradient for the input alone, such as a saliency map,
    does not warn.
    """
    return parameter


@warn_if_differentiated.defjvp
def _warn(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    warnings.warn(
        "a network is trained whose attention has a batch norm, with running statistics that are never "
        "updated: pass mutable=['batch_stats'] to apply and keep the collection that it returns, or write "
        "attention_norm='layer'. To keep the statistics as they are, write use_running_average=True.",
        stacklevel=2,
    )
    return primals[0], tangents[0]
