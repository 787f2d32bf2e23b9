"""Checks values against the limits that stand beside the settings' defaults."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.configs.shared.layers import list_layer_fields
from experiments.configs.shared.settings import (
    LAYER_FIELDS,
    LAYER_SECTIONS,
    SECTIONS,
    Kind,
    Setting,
    list_paths,
    select_settings,
)
from experiments.core.errors import UserError, describe_kind, suggest_nearest

SETTINGS = dict(list_paths(SECTIONS))

# Whole numbers are counted with in 32 bits, and so is all other arithmetic.
LARGEST = 2**31 - 1
MOST_ENTRIES = 1000  # of a tuple
LEAST_FLOAT, LARGEST_FLOAT = (float(x) for x in (np.finfo("f4").tiny, np.finfo("f4").max))


def check_limits(config: ConfigDict) -> None:
    """Checks each value of a config by itself; a UserError names the first invalid one, and what is valid."""
    settings = select_settings(Kind.from_config(config))
    for path, value in list_paths(config):
        _check_value(
            f"--config.{path}", value, settings.get(path, Setting(None, LAYER_FIELDS.get(path)))
        )


def check_saved_settings(saved: Mapping[str, Any], source: object) -> None:
    """Checks the types and values of the settings that a run has written, perhaps with an older version.

    Settings that do not exist, or that the experiment has no use for, are left alone. A UserError begins with
    `source`, the file that the settings are from.
    """
    for name, value in saved.items():
        section = isinstance(SECTIONS.get(name, value), Mapping)
        if section != isinstance(value, Mapping):
            kind = "a group of settings" if section else "one setting"
            raise UserError(f"{source} cannot be read: {name} is not {kind}.")
    if _has_dotted_name(saved):
        raise UserError(f"{source} cannot be read: the name of a setting has a point in it.")
    given = dict(list_paths(saved))
    default = Kind().choices
    for path in default:  # they decide which settings there are
        _check_saved_value(source, path, given.get(path, default[path]), SETTINGS[path])
    settings = select_settings(Kind.from_config(saved))
    for path, value in given.items():
        section, _, field = path.partition(".")
        if path in settings:
            _check_saved_value(source, path, value, settings[path])
        elif section in LAYER_SECTIONS and f"{section}.name" in settings:
            if "." in field:
                raise UserError(f"{source} cannot be read: {shorten(path)} is in another setting.")
            fields = list_layer_fields(section, given.get(f"{section}.name"))
            example = fields.get(field, value)
            _check_saved_value(source, path, value, Setting(example, LAYER_FIELDS.get(path)))


def _has_dotted_name(saved: Mapping[str, Any]) -> bool:
    below = [value for value in saved.values() if isinstance(value, Mapping)]
    return any("." in name for name in saved) or any(map(_has_dotted_name, below))


def _check_saved_value(source: object, path: str, value: object, setting: Setting) -> None:
    """Checks the type and the limits of a value from a JSON file, which has lists for tuples."""
    name, default = f"{source} cannot be read: {path}", setting.default
    if isinstance(default, tuple):
        is_like = isinstance(value, list | tuple)
        is_like = is_like and all(_has_type_of(entry, default[0]) for entry in value)
    else:
        is_like = _has_type_of(value, default)
    if not is_like:
        raise UserError(f"{name}={shorten(value)} is not {describe_kind(default)}")
    _check_value(name, value, setting)


def _has_type_of(value: object, example: object) -> bool:
    return type(value) is type(example) or (isinstance(example, float) and type(value) is int)


def _check_value(name: str, value: Any, setting: Setting) -> None:
    """Checks one value against its limits; a UserError begins with `name`."""
    if value is None:
        raise UserError(f"{name}=None: it needs a value.")
    if isinstance(setting.allowed, tuple):
        if value not in setting.allowed:
            words = list(map(str, setting.allowed))
            hint = suggest_nearest(str(value), words)
            if not isinstance(value, str) or "did you mean" not in hint:
                hint = f"choose one of {', '.join(words)}."
            raise UserError(f"{name}={shorten(value)}: {hint.removeprefix('; ')}")
    elif isinstance(value, tuple | list):
        _check_entries(name, value, setting)
    elif setting.allowed and not _lies_in(value, setting.allowed):
        raise UserError(f"{name}={shorten(value)}: choose {_describe_interval(setting.allowed)}.")
    _check_32_bits(name, value)


def shorten(value: object) -> str:
    """Returns a value as a message shows it."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def describe_allowed(setting: Setting) -> str:
    """Describes the values that a setting takes, such as `0 or more`; '' if it takes any."""
    if isinstance(setting.allowed, tuple):
        return ", ".join(map(str, setting.allowed))
    return _describe_interval(setting.allowed) if setting.allowed else ""


def _check_entries(name: str, values: tuple | list, setting: Setting) -> None:
    """Checks the number and the values of a tuple's entries."""
    right = len(values) in setting.lengths if setting.lengths else 0 < len(values) <= MOST_ENTRIES
    # Names without quotes, `(a, b)`, arrive as one text.
    right = right and not any(isinstance(v, str) and v.startswith(("(", "[")) for v in values)
    if setting.allowed:
        kind = int if isinstance(setting.default[0], int) else int | float
        right = right and all(
            isinstance(value, kind) and _lies_in(value, str(setting.allowed)) for value in values
        )
    if not right:
        number = " or ".join(map(str, setting.lengths))
        noun = "value" if setting.lengths == (1,) else "values"
        entries = f"{number} {noun}" if number else "one or more values"
        limits = f", each {_describe_interval(str(setting.allowed))}" if setting.allowed else ""
        raise UserError(
            f"{name}={shorten(values)}: give {entries}{limits}, such as {setting.default}."
        )


def _lies_in(value: float, interval: str) -> bool:
    """Returns whether a number lies in an interval such as `[0, 1)`; a NaN lies in none."""
    low, high = _parse_interval(interval)
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def _describe_interval(interval: str) -> str:
    """Describes an interval, such as `0 or more`."""
    ends = _parse_interval(interval)
    low, high = (f"{end:g}" if abs(end) < 1e6 or math.isinf(end) else f"{end:.0f}" for end in ends)
    low = "" if low == "-inf" else f"{low} or more" if interval[0] == "[" else f"more than {low}"
    high = (
        "" if high == "inf" else f"{high} or less" if interval[-1] == "]" else f"less than {high}"
    )
    return " and ".join(filter(None, (low, high))) or "a finite number"


def _parse_interval(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _check_32_bits(name: str, value: object) -> None:
    match value:
        case tuple() | list():
            for entry in value:
                _check_32_bits(name, entry)
        case bool() | str():
            return
        case int() if abs(value) > LARGEST:
            raise UserError(f"{name}={shorten(value)}: choose {LARGEST} or less.")
        case float() if not (value == 0 or LEAST_FLOAT <= abs(value) <= LARGEST_FLOAT):
            raise UserError(
                f"{name}={shorten(value)}: choose a number that float32 has, 0 or one of about "
                f"{LEAST_FLOAT:.0e} to {LARGEST_FLOAT:.0e}."
            )
