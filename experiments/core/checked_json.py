"""Reads JSON that other programs or people may have written: each value must have a described form.

A form is one of the classes below. A record may have fields that its form does not name: a file of a later
version has more of them.

Example:
    >>> from experiments.core.checked_json import Number, Record, Text, find_fault
    >>> form = Record({"name": Text(), "steps": Number(0, whole=True)}, needed=("name",))
    >>> find_fault({"name": "a", "steps": 3}, form)
    ''
    >>> find_fault({"name": "a", "steps": -3}, form)
    'steps is -3 instead of a whole number of 0 or more'
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.core.errors import UserError
from experiments.core.files import MEGABYTE, read_small_file

MAX_BYTES = 32 * MEGABYTE
MAX_DEPTH = 12  # of brackets; the files of a run have 4
MAX_SHOWN = 40  # characters of a wrong value
MAX_DIGITS = 20
MAX_NAME = 1000  # characters
LARGEST = 1e300  # a float and a sum of several


@dataclasses.dataclass(frozen=True)
class Text:
    """A text."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or false."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number between two bounds, which it may reach."""

    low: float = -LARGEST
    high: float = LARGEST
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Metric:
    """Any number; NaN and infinity too, which Orbax writes into its own files."""


@dataclasses.dataclass(frozen=True)
class Anything:
    """Any value."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A value without texts: numbers, truth values, null, and lists and objects of these."""


@dataclasses.dataclass(frozen=True)
class Nullable:
    """A value of another form, or null."""

    form: "Form"


@dataclasses.dataclass(frozen=True)
class ListOf:
    """A list with items of one form."""

    item: "Form"
    shortest: int = 0
    longest: int = 1_000_000


@dataclasses.dataclass(frozen=True)
class MapOf:
    """An object with any keys, and values of one form."""

    value: "Form"


@dataclasses.dataclass(frozen=True)
class Record:
    """An object with named fields.

    Attributes:
        fields: the form of each.
        needed: the fields that must be there.
        others: the form of all other fields; None if there must not be any.
    """

    fields: Mapping[str, "Form"]
    needed: Sequence[str] = ()
    others: "Form | None" = Anything()


Form = Text | Flag | Number | Metric | Anything | Numbers | Nullable | ListOf | MapOf | Record


def read_json(
    path: str | os.PathLike, form: Form, advice: str = "", max_bytes: int = MAX_BYTES
) -> Any:
    """Reads a JSON file of a form.

    Raises:
        FileNotFoundError: if there is no file.
        UserError: if it is no readable file, no JSON, or has another form; the message names the first
            fault, and ends with the sentence `advice`.
    """
    try:
        return parse_json(read_small_file(path, max_bytes), form)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}. {advice}".rstrip()) from error


def parse_json(content: bytes | str, form: Form) -> Any:
    """Returns the value of a JSON text of a form; the message of a ValueError names the first fault."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_make_object, parse_int=_parse_int)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"it has more than {MAX_DEPTH} brackets in brackets") from error
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"it has more than {MAX_DEPTH} brackets in brackets")
    if fault := find_fault(value, form):
        raise ValueError(fault)
    return value


def find_fault(value: Any, form: Form, name: str = "") -> str:
    """Returns the first reason why a value does not have a form; '' if it has."""
    match form:
        case Anything():
            return ""
        case Numbers():
            return "" if _has_no_text(value) else _describe_fault(value, "a number", name)
        case Nullable():
            return "" if value is None else find_fault(value, form.form, name)
        case ListOf():
            return _find_fault_in_list(value, form, name)
        case MapOf() | Record():
            return _find_fault_in_object(value, form, name)
    return "" if _is_scalar_of(value, form) else _describe_fault(value, _describe(form), name)


def _find_fault_in_list(value: Any, form: ListOf, name: str) -> str:
    if not isinstance(value, list):
        return _describe_fault(value, "a list", name)
    if not form.shortest <= len(value) <= form.longest:
        number = f"{form.shortest} to {form.longest}"
        return f"{name or 'it'} has {len(value)} entries instead of {number}"
    faults = (find_fault(item, form.item, f"{name}[{n}]") for n, item in enumerate(value))
    return next(filter(None, faults), "")


def _find_fault_in_object(value: Any, form: MapOf | Record, name: str) -> str:
    if not isinstance(value, dict):
        return _describe_fault(value, "an object", name) if name else "it holds no JSON object"
    record = Record({}, others=form.value) if isinstance(form, MapOf) else form
    if missing := [field for field in record.needed if field not in value]:
        return f"{name or 'it'} has no {missing[0]}"
    for field, item in value.items():
        below = f"{name}.{field[:MAX_SHOWN]}".removeprefix(".")
        of_item = record.fields.get(field, record.others)
        fault = f"{below} does not exist" if of_item is None else find_fault(item, of_item, below)
        if fault:
            return fault
    return ""


def _has_no_text(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_has_no_text, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, str)


def _is_scalar_of(value: Any, form: Form) -> bool:
    if isinstance(form, Text | Flag):
        return isinstance(value, str if isinstance(form, Text) else bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(form, Number):
        kind = int if form.whole else int | float
        return isinstance(value, kind) and form.low <= value <= form.high
    return True


def _describe(form: Form) -> str:
    """Describes a scalar, such as `a whole number of 0 or more`."""
    if not isinstance(form, Number):
        return {Text: "a text", Flag: "true or false"}.get(type(form), "a number")
    low = f"{form.low:,} or more" if form.low > -LARGEST else ""
    high = f"{form.high:,} or less" if form.high < LARGEST else ""
    limits = " and ".join(filter(None, (low, high)))
    kind = "a whole number" if form.whole else "a finite number"
    return f"{kind} of {limits}" if limits else kind


def _describe_fault(value: Any, wanted: str, name: str) -> str:
    # Not `json.dumps`: it would make a text of all of a large list first.
    found = {dict: "an object", list: "a list"}.get(type(value)) or json.dumps(value)
    shown = found if len(found) <= MAX_SHOWN else f"{found[:MAX_SHOWN]}..."
    return f"{name or 'it'} is {shown} instead of {wanted}"


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object; a key that is there twice is a ValueError, because readers disagree on it."""
    value = dict(pairs)
    if any(len(key) > MAX_NAME for key in value):
        raise ValueError(f"it has a name of more than {MAX_NAME:,} characters")
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice[:MAX_SHOWN]!r} is there twice")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"{digits[:MAX_DIGITS]}... is too large a number")
    return int(digits)


def _is_deeper(value: Any, depth: int) -> bool:
    """Returns whether a value has more than `depth` brackets in brackets."""
    if not isinstance(value, dict | list):
        return False
    below = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in below)
