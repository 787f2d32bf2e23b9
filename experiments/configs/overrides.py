"""Changing fields of configs by words: one value for all of them, or a sweep over several."""

import ast
import itertools
import math
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from experiments.core.errors import UserError, describe_kind, suggest_nearest


def key_and_value(text: str, flag: str) -> tuple[str, str]:
    """`epochs=5` as `("epochs", "5")`.

    Raises:
        UserError: if it is nothing like that.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{flag}={text}: write KEY=VALUE, such as epochs=5.")
    return key, value


def override(config: ConfigDict, path: str, value: object, flag: str = "--override") -> None:
    """Gives a field of a config a value, or what the text of one says.

    Args:
        config: is changed.
        path: of the field, such as `optimizer.learning_rate`.
        value: of the field's kind, or a text that can be read as that.
        flag: what the person wrote, for errors.

    Raises:
        UserError: if there is no such field, or the value is of another kind.
    """
    node = config.to_dict(preserve_field_references=False)
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            known = node if isinstance(node, dict) else []
            raise UserError(
                f"{flag}={path}: {config.name} has no such field{suggest_nearest(key, known)}"
            )
        node = node[key]
    if isinstance(node, dict):
        raise UserError(f"{flag}={path}: it is a group of fields: {', '.join(node)}.")
    config.update_from_flattened_dict({path: _like(node, value, f"{flag}={path}")})


def sweep(configs: Sequence[ConfigDict], grid: Mapping[str, Sequence[str]]) -> list[ConfigDict]:
    """Every config with every combination of values.

    A config's new name says its values, such as `odconv,learning_rate=0.003`, and it is compared with the
    baseline of the same values.

    Args:
        configs: stay as they are.
        grid: path of a field to its values; empty for no sweep.

    Raises:
        UserError: for a field that does not exist, a value of another kind, or the same value twice.
    """
    if not grid:
        return list(configs)
    names = {config.name for config in configs}
    swept = []
    for values in itertools.product(*grid.values()):
        said = "".join(
            f",{path.rpartition('.')[2]}={value}" for path, value in zip(grid, values, strict=True)
        )
        for config in configs:
            one = config.copy_and_resolve_references()
            with one.unlocked():
                for path, value in zip(grid, values, strict=True):
                    override(one, path, value, "--sweep")
                one.name += said
                if config.baseline in names:
                    one.baseline += said
                if config.start.config:
                    one.start.config += said
            swept.append(one)
    if len({config.name for config in swept}) < len(swept):
        raise UserError("--sweep: name every value once, and fields that end differently.")
    return swept


def _like(usual: object, value: object, setting: str) -> object:
    """A value, or the text of one, as what a field usually has is: a text, a number, a tuple.

    Raises:
        UserError: if it is nothing like that.
    """
    if isinstance(usual, str) and isinstance(value, str):
        return value
    given = value
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.capitalize() if isinstance(usual, bool) else value)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            pass  # it stays a text, which is not like anything else
    if isinstance(usual, float) and type(value) is int:
        return _float(value)
    if isinstance(usual, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(usual):
        raise UserError(f"{setting}={given}: it is not {describe_kind(usual)}")
    return value


def _float(number: int) -> float:
    """Infinity instead of what a float has no room for; validation refuses it."""
    try:
        return float(number)
    except OverflowError:
        return math.inf
