"""The variables of NNX modules as Linen has them, and functions that set them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from dyn import schedules

Array = jax.Array
Path = tuple[Any, ...]


class Attention(nnx.Variable):
    """A number that attention is computed with and that is not learned: a temperature, or a blend."""


class Loss(nnx.Variable):
    """An auxiliary loss that a layer has computed, for `flax.nnx.capture`."""


# The type of a variable stands for the name of a collection in Linen.
TYPES: dict[str, type[nnx.Variable]] = {
    "params": nnx.Param,
    "batch_stats": nnx.BatchStat,
    "intermediates": nnx.Intermediate,
    "attention": Attention,
    "losses": Loss,
}
COLLECTIONS = {kind: collection for collection, kind in TYPES.items()}


def find_type(collection: str) -> type[nnx.Variable]:
    """Returns the type of the variables of a collection; one of flax's for a collection not used here."""
    return TYPES.get(collection) or nnx.variable_type_from_name(collection, allow_register=True)


def find_collection(kind: type[nnx.Variable]) -> str:
    """Returns the collection of the variables of a type."""
    return COLLECTIONS.get(kind) or nnx.variable_name_from_type(kind, allow_register=True)


def iter_variables(module: nnx.Module) -> Iterator[tuple[Path, nnx.Variable]]:
    """Yields path, collection first, and variable; not those of random numbers and of `flax.nnx.capture`."""
    for path, value in nnx.iter_graph(module):
        if isinstance(value, nnx.Variable) and not isinstance(value, nnx.RngState):
            if "__captures__" not in path:
                yield (find_collection(type(value)), *path), value


def to_linen(module: nnx.Module) -> dict[str, Any]:
    """Returns the variables of a module as Linen has them.

    They are the variables of the Linen module that a module of `dyn.nnx` was made from, with the same names
    and shapes. A module of one's own gives them by its attributes.

    Args:
        module: a module of `dyn.nnx`, or one that contains some.

    Returns:
        `{"params": {...}, "batch_stats": {...}, "attention": {...}}`, as `init` returns it and `apply` takes
        it. Random numbers are not among them. Of a part that several modules share, the first has the
        variables.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn import layers
        >>> from dyn.nnx import ODConv, to_linen
        >>> from flax import nnx
        >>> conv = ODConv(3, 16, (3, 3), rngs=nnx.Rngs(0))
        >>> layers.ODConv(16, (3, 3)).apply(to_linen(conv), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 16)
    """
    return traverse_util.unflatten_dict(
        {path: variable.get_value() for path, variable in iter_variables(module)}
    )


def load_linen(module: nnx.Module, variables: Mapping[str, Any]) -> None:
    """Sets the variables of a module to those of Linen, for instance to published weights.

    Args:
        module: a module of `dyn.nnx`, or one that contains some.
        variables: collections with the names and shapes of `to_linen`. Those that are left out keep their
            values.

    Raises:
        ValueError: if a collection has other names or shapes than the module; nothing is set then.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn import layers
        >>> from dyn.nnx import ODConv, load_linen
        >>> from flax import nnx
        >>> variables = layers.ODConv(16, (3, 3)).init(jax.random.key(7), jnp.ones((2, 8, 8, 3)))
        >>> conv = ODConv(3, 16, (3, 3), rngs=nnx.Rngs(0))
        >>> load_linen(conv, variables)
        >>> bool((conv.kernel[...] == variables["params"]["kernel"]).all())
        True
    """
    found = {p: v for p, v in iter_variables(module) if p[0] in variables}
    values: dict[Path, Any] = traverse_util.flatten_dict(dict(variables))
    kind = type(module).__name__
    for path in values.keys() ^ found.keys():
        lack = "the module has not" if path in values else "the variables lack"
        raise ValueError(f"the variables are not those of this {kind}: {lack} {_join(path)}.")
    for path, value in values.items():
        got, wanted = jnp.shape(value), jnp.shape(found[path].get_value())
        if got != wanted:
            raise ValueError(
                f"the variables are not those of this {kind}: {_join(path)} has shape {got}, not {wanted}."
            )
    for path, value in values.items():
        found[path].set_value(jnp.asarray(value))


def _join(path: Path) -> str:
    return "/".join(map(str, path))


def set_temperature(module: nnx.Module, temperature: Array | float) -> None:
    """Sets the temperature of every layer in a module, which compiles nothing again.

    Args:
        module: a module of `dyn.nnx`, or one that contains some.
        temperature: the new value; may be traced. See `dyn.schedules` for how it is annealed.

    Raises:
        ValueError: if the temperature is not positive and not traced.

    Example:
        >>> from dyn.nnx import ODConv, set_temperature
        >>> from flax import nnx
        >>> conv = ODConv(3, 16, (3, 3), rngs=nnx.Rngs(0))
        >>> set_temperature(conv, 30.0)
        >>> float(conv.attention.temperature[...])
        30.0
    """
    attention = {"attention": to_linen(module).get("attention", {})}
    load_linen(module, schedules.set_temperature(attention, temperature))


def set_blend(module: nnx.Module, value: Array | float) -> None:
    """Sets the blend of every `WarehouseConv` and `WarehouseDense` in a module.

    Args:
        module: a module of `dyn.nnx`, or one that contains some.
        value: the new value, from 0 to 1; may be traced. See `dyn.schedules.linear_blend`.

    Raises:
        ValueError: if the value is not from 0 to 1 and not traced.
    """
    attention = {"attention": to_linen(module).get("attention", {})}
    load_linen(module, schedules.set_blend(attention, value))
