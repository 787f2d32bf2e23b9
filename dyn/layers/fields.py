"""The check of a module's fields by their annotations: a wrong one is an error that says what to write."""

import difflib
import functools
import inspect
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np


class CheckedModule(nn.Module):
    """A module that refuses a field that does not exist, and a value of another kind than its annotation."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Checks the names of the fields, which Python does in words that name no way out."""
        super().__init_subclass__(**options)
        make = cls.__init__

        @functools.wraps(make)
        def check_names(self: Any, *args: Any, **fields: Any) -> None:
            unknown = [name for name in fields if name not in _list_fields(type(self))]
            if unknown:
                raise TypeError(explain_unknown_field(type(self), unknown[0]))
            make(self, *args, **fields)

        setattr(cls, "__init__", check_names)  # noqa: B010

    def __post_init__(self) -> None:
        """Checks the values of the fields.

        Raises:
            ValueError: for the first value that its field cannot have.
        """
        check_fields(self)
        super().__post_init__()


def check_fields(module: nn.Module) -> None:
    """Checks that each field of a module has a value of a kind that its annotation names.

    Numbers, truth values, sequences of whole numbers, and functions are checked. Names are not: whoever
    knows the choices refuses a wrong one and lists them.

    Raises:
        ValueError: for the first field that has not.
    """
    for name, kinds in _list_fields(type(module)).items():
        value = getattr(module, name, None)
        if kinds and not any(matches(value) for matches, _ in kinds):
            wanted = " or ".join(words for _, words in kinds)
            raise ValueError(
                f"{type(module).__name__}: {name}={_shorten(value)} must be {wanted}"
                f"{_suggest(name, value, kinds)}."
            )


def explain_unknown_field(module: type[nn.Module], name: str) -> str:
    """Returns the message for a field that a module does not have."""
    known = [field for field in _list_fields(module) if field not in ("parent", "name")]
    if name == "context":
        return (
            f"{module.__name__} has no field context: pass an array with the input, layer(x, context=c). In "
            "the networks of dyn.models, context is a field."
        )
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}."
    return f"{module.__name__} has no field {name}: {meant}"


Kind = tuple[Callable[[Any], bool], str]
"""A test of a value, and the words for values that pass it."""


@functools.cache
def _list_fields(module: type[nn.Module]) -> Mapping[str, tuple[Kind, ...]]:
    """Returns the kinds of values of each field; none for a field that may have any value."""
    try:
        hints = typing.get_type_hints(module)
    except NameError:  # annotations as text, of a class that was made inside a function
        hints = {}
    names = list(inspect.signature(module.__init__).parameters)[1:]
    return {name: _find_kinds(hints.get(name, Any)) for name in names}


def _find_kinds(annotation: Any) -> tuple[Kind, ...]:
    """Returns the kinds of values that an annotation names; none if it names one that is not checked."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_find_kinds(part) for part in typing.get_args(annotation)]
        return tuple(dict.fromkeys(kind for part in parts for kind in part)) if all(parts) else ()
    if origin in (Sequence, tuple) and typing.get_args(annotation)[0] is int:
        return ((_holds_integers, "whole numbers such as (3, 3)"),)
    if origin is Callable:
        result = typing.get_args(annotation)[-1]
        makes_module = isinstance(result, type) and issubclass(result, nn.Module)
        return ((_makes_modules, "a function or a class"),) if makes_module else (_FUNCTION,)
    # Initialisers are a protocol.
    if isinstance(annotation, type) and (
        issubclass(annotation, nn.Module) or getattr(annotation, "_is_protocol", False)
    ):
        return (_FUNCTION,)
    return _SIMPLE.get(annotation, ())


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim == 0
    return isinstance(value, numbers.Real)


def _holds_integers(value: Any) -> bool:
    return (
        isinstance(value, Iterable) and not isinstance(value, str) and all(map(_is_integer, value))
    )


def _makes_modules(value: Any) -> bool:
    # A layer has features, and is not what makes one; the module `Warehouses` makes layers.
    return callable(value) and not (isinstance(value, nn.Module) and hasattr(value, "features"))


_FUNCTION: Kind = (callable, "a function or a module")
_SIMPLE: dict[Any, tuple[Kind, ...]] = {
    int: ((_is_integer, "a whole number"),),
    float: ((_is_number, "a number"),),
    bool: ((lambda value: isinstance(value, bool | np.bool_ | int), "True or False"),),
    types.NoneType: ((lambda value: value is None, "None"),),
}


def _suggest(name: str, value: Any, kinds: Iterable[Kind]) -> str:
    """Returns what to write instead of a value, after a colon; '' if that is not clear."""
    if any(matches is _makes_modules for matches, _ in kinds):
        example = "partial(ODConv, num_kernels=4)" if name == "conv" else "partial(Layer, ...)"
        layer = f"{type(value).__name__} or {example}" if isinstance(value, nn.Module) else example
        return f", which the network calls for each of its layers: write for example {name}={layer}"
    if isinstance(value, str):
        for read in (int, float):
            try:
                number = read(value)
            except ValueError:
                continue
            if any(matches(number) for matches, _ in kinds):
                return f": write {name}={number}, without quotation marks"
    return ""


def _shorten(value: Any) -> str:
    """Returns a value as Python writes it, in one line that is not long."""
    text = f"{type(value).__name__}(...)" if isinstance(value, nn.Module) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
