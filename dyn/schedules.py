"""Schedules of temperature and blend, and functions that set them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array


def linear_temperature(step: Array | int, start: float, steps: int) -> Array:
    """Anneals linearly from `start` to 1 over `steps` steps, then stays at 1.

        T = 1 + max(0, (start - 1) (steps - step) / steps)

    Args:
        step: number of the step, from 0; may be traced.
        start: temperature at step 0. 30 in ODConv and in Chen et al. 2020.
        steps: step at which T reaches 1; 0 for a constant 1.

    Example:
        >>> from dyn.schedules import linear_temperature
        >>> [float(linear_temperature(s, 30.0, 10)) for s in (0, 5, 10, 99)]
        [30.0, 15.5, 1.0, 1.0]
    """
    return 1.0 + (start - 1.0) * linear_blend(step, steps)


def geometric_temperature(step: Array | int, start: float, steps: int) -> Array:
    """Anneals geometrically from `start` to 1 over `steps` steps, then stays at 1.

        T = start ^ max(0, (steps - step) / steps)

    A linear schedule sharpens the attention slowly at first and abruptly at the end: from 30 to 1 in ten
    epochs, the last epoch divides T by 3.9. Here every epoch divides it by 1.4.

    Args:
        step: number of the step, from 0; may be traced.
        start: temperature at step 0.
        steps: step at which T reaches 1; 0 for a constant 1.

    Example:
        >>> from dyn.schedules import geometric_temperature
        >>> [float(geometric_temperature(s, 16.0, 4)) for s in (0, 1, 2, 3, 4, 99)]
        [16.0, 8.0, 4.0, 2.0, 1.0, 1.0]
    """
    return jnp.asarray(start, jnp.float32) ** linear_blend(step, steps)


def two_slope_temperature(
    epoch: Array | int,
    start: float = 30.0,
    fast: float = 1.0,
    slow: float = 0.02,
    least: float = 1.0,
) -> Array:
    """Anneals quickly, then slowly, as DyMN's authors do; the defaults are theirs.

        T = max(start - fast e,  1 + slow ((start - 1) / fast - e),  least)

    Args:
        epoch: e, from 0; may be traced.
        start: temperature at epoch 0.
        fast: what an epoch takes away at first.
        slow: what an epoch takes away later.
        least: the lowest temperature.

    Example:
        >>> from dyn.schedules import two_slope_temperature
        >>> [float(two_slope_temperature(e, 30.0, 2.0, 0.5)) for e in (0, 10, 13, 99)]
        [30.0, 10.0, 4.0, 1.0]
    """
    epochs = jnp.asarray(epoch, jnp.float32)
    early, late = start - fast * epochs, 1.0 + slow * ((start - 1.0) / fast - epochs)
    return jnp.maximum(jnp.maximum(early, late), least)


def set_temperature(variables: Mapping[str, Any], temperature: Array | float) -> dict[str, Any]:
    """Sets the temperature of every layer in `variables`.

    Args:
        variables: a model's variables, with or without the collection `attention`.
        temperature: the new value; may be traced.

    Returns:
        A copy of `variables` in which every `temperature` of the collection `attention` is replaced. Shapes
        and dtypes stay: layers stacked by `nn.scan` or `nn.vmap` all get the new value.

    Raises:
        ValueError: if the temperature is not positive and not traced.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers import ODConv
        >>> from dyn.schedules import set_temperature
        >>> variables = ODConv(8, (3,)).init(jax.random.key(0), jnp.ones((2, 9, 4)))
        >>> variables = set_temperature(variables, 30.0)
        >>> float(variables["attention"]["attention"]["temperature"])
        30.0
    """
    if not isinstance(temperature, jax.core.Tracer) and not float(temperature) > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")

    return _set_everywhere(variables, "temperature", temperature)


def linear_blend(step: Array | int, steps: int) -> Array:
    """Decreases the blend of `WarehouseConv` linearly from 1 to 0 over `steps` steps, then stays at 0.

    Args:
        step: number of the step, from 0; may be traced.
        steps: step at which the blend reaches 0; 0 for a constant 0.

    Example:
        >>> from dyn.schedules import linear_blend
        >>> [float(linear_blend(s, 10)) for s in (0, 5, 10, 99)]
        [1.0, 0.5, 0.0, 0.0]
    """
    return jnp.maximum(steps - jnp.asarray(step, jnp.float32), 0.0) / max(steps, 1)


def set_blend(variables: Mapping[str, Any], value: Array | float) -> dict[str, Any]:
    """Sets the blend of every `WarehouseConv` in `variables`.

    Args:
        variables: a model's variables, with or without the collection `attention`.
        value: the new value, from 0 to 1; may be traced.

    Returns:
        A copy of `variables` in which every `blend` of the collection `attention` is replaced.

    Raises:
        ValueError: if the value is not from 0 to 1 and not traced.
    """
    if not isinstance(value, jax.core.Tracer) and not 0 <= float(value) <= 1:
        raise ValueError(f"blend must be from 0 to 1; got {value}.")

    return _set_everywhere(variables, "blend", value)


def _set_everywhere(
    variables: Mapping[str, Any], name: str, value: Array | float
) -> dict[str, Any]:
    """Returns a copy with a new value for every variable `name` of the collection `attention`."""
    if "attention" not in variables:
        return {**variables}

    def fill(leaf: Array, value: Array) -> Array:
        return jnp.broadcast_to(value, leaf.shape)

    def replace(path: tuple[Any, ...], leaf: Array) -> Array:
        if getattr(path[-1], "key", None) != name:
            return leaf
        value_of_leaf = jnp.asarray(value, leaf.dtype)
        return automate_sharding(fill, leaf, value_of_leaf, axes=mesh_axes(leaf))

    attention = jax.tree_util.tree_map_with_path(replace, variables["attention"])
    return {**variables, "attention": attention}
