"""Checks values against the limits that stand beside the settings' defaults."""

import numpy as np
from ml_collections import ConfigDict

from experiments.configs.shared.settings import (
    LAYER_FIELDS,
    Kind,
    Setting,
    list_paths,
    select_settings,
)
from experiments.core.errors import UserError, suggest_nearest

# Whole numbers are counted with in 32 bits, and so is all other arithmetic.
LARGEST = 2**31 - 1
LEAST_FLOAT, LARGEST_FLOAT = (float(x) for x in (np.finfo("f4").tiny, np.finfo("f4").max))


def check_limits(config: ConfigDict) -> None:
    """Checks each value of a config by itself; a UserError names the first invalid one, and what is valid."""
    settings = select_settings(Kind.from_config(config))
    for path, value in list_paths(config):
        if value is None:
            raise UserError(f"--config.{path}=None: it needs a value.")
        setting = settings.get(path, Setting(None, LAYER_FIELDS.get(path)))
        if isinstance(setting.allowed, tuple):
            if value not in setting.allowed:
                words = list(map(str, setting.allowed))
                hint = suggest_nearest(str(value), words)
                if not isinstance(value, str) or "did you mean" not in hint:
                    hint = f"choose one of {', '.join(words)}."
                raise UserError(f"--config.{path}={value}: {hint.removeprefix('; ')}")
        elif isinstance(value, tuple | list):
            _check_entries(path, value, setting)
        elif setting.allowed and not _lies_in(value, setting.allowed):
            raise UserError(
                f"--config.{path}={value}: choose {_describe_interval(setting.allowed)}."
            )
        _check_32_bits(path, value)


def _check_entries(path: str, values: tuple | list, setting: Setting) -> None:
    """Checks the number and the values of a tuple's entries."""
    right = len(values) in setting.lengths if setting.lengths else len(values) > 0
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
            f"--config.{path}={values}: give {entries}{limits}, such as {setting.default}."
        )


def _lies_in(value: float, interval: str) -> bool:
    """Returns whether a number lies in an interval such as `[0, 1)`; a NaN lies in none."""
    low, high = _parse_interval(interval)
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def _describe_interval(interval: str) -> str:
    """Describes an interval, such as `0 or more`."""
    low, high = (f"{end:g}" if abs(end) < 1e6 else str(end) for end in _parse_interval(interval))
    low = "" if low == "-inf" else f"{low} or more" if interval[0] == "[" else f"more than {low}"
    high = (
        "" if high == "inf" else f"{high} or less" if interval[-1] == "]" else f"less than {high}"
    )
    return " and ".join(filter(None, (low, high))) or "a finite number"


def _parse_interval(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _check_32_bits(path: str, value: object) -> None:
    match value:
        case tuple() | list():
            for entry in value:
                _check_32_bits(path, entry)
        case bool() | str():
            return
        case int() if abs(value) > LARGEST:
            raise UserError(f"--config.{path}={value}: choose {LARGEST} or less.")
        case float() if not (value == 0 or LEAST_FLOAT <= abs(value) <= LARGEST_FLOAT):
            raise UserError(
                f"--config.{path}={value}: choose a number that float32 has, 0 or one of about "
                f"{LEAST_FLOAT:.0e} to {LARGEST_FLOAT:.0e}."
            )
