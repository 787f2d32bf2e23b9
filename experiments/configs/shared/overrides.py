"""Changes settings by words: one value for several configs, or a sweep over several values."""

import ast
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from experiments.configs.shared.assemble import complete_config
from experiments.configs.shared.flags import add_settings
from experiments.configs.shared.layers import list_layer_fields
from experiments.configs.shared.settings import LAYER_SECTIONS, Kind, select_settings
from experiments.core.config_file import find_setting
from experiments.core.errors import UserError, describe_kind

START = "start.config"
"""The setting that names the config to start from."""


def split_override(text: str, flag: str) -> tuple[str, str]:
    """Splits `epochs=5` into `("epochs", "5")`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{flag}={text}: write KEY=VALUE, such as epochs=5.")
    return key, value


def override(config: ConfigDict, path: str, value: object, flag: str = "--override") -> None:
    """Sets the value, or the text of a value, at a path such as `optimizer.learning_rate`.

    A missing setting, or a value of another kind, is a UserError that names `flag`.
    """
    if has_setting(config, path):
        add_settings(config, {path: str(value)})
    example = find_setting(config, path, f"{flag}=")
    config.update_from_flattened_dict({path: _convert(example, value, f"{flag}={path}")})


def override_all(
    configs: Sequence[ConfigDict], path: str, value: object, flag: str = "--override"
) -> None:
    """Sets a value, as `override` does, in all configs that have the setting; one of them must have it."""
    having = [config for config in configs if has_setting(config, path)]
    for config in having or configs[:1]:
        override(config, path, value, flag)


def check_used(configs: Sequence[ConfigDict], paths: Iterable[str], flag: str) -> None:
    """Raises a UserError for the first setting that another choice has made meaningless in all configs."""
    completed = [complete_config(config) for config in configs]
    for path in paths:
        if not any(has_setting(config, path) for config in completed):
            find_setting(completed[0], path, f"{flag}=")


def has_setting(config: ConfigDict, path: str) -> bool:
    """Returns whether a config has a setting of this dotted path, or a layer with this field.

    A setting that belongs to the config's choices counts too: another convolution may have been chosen.
    """
    if _is_layer_field(config, path) or path in select_settings(Kind.from_config(config)):
        return True
    for key in path.split("."):
        if not isinstance(config, ConfigDict) or key not in config:
            return False
        config = config[key]
    return True


def _is_layer_field(config: ConfigDict, path: str) -> bool:
    """Returns whether a path names a field that a layer of a config has."""
    section, _, field = path.partition(".")
    if section not in LAYER_SECTIONS or section not in config:
        return False
    return field in list_layer_fields(section, config[section].name)


def sweep(configs: Sequence[ConfigDict], grid: Mapping[str, Sequence[str]]) -> list[ConfigDict]:
    """Returns every config with every combination of values of the settings that it has.

    A config's new name has its values, such as `odconv,learning_rate=0.003`, and it is compared with the
    baseline of the same values. It starts, if it does, from the config of the same values that itself starts
    from nothing. `grid` has the values of each path.
    """
    if not grid:
        return list(configs)
    if "" not in grid.get(START, [""]):
        raise UserError(
            f"--sweep={START}: let one of the values be empty, as in {START}=,base. A config that others "
            "start from has to start from nothing."
        )
    for path in grid:
        if not any(has_setting(config, path) for config in configs):
            find_setting(configs[0], path, "--sweep=")
    by_name = {config.name: config for config in configs}
    swept = []
    for config in configs:
        own = [path for path in grid if has_setting(config, path)]
        for values in itertools.product(*(grid[path] for path in own)):
            chosen = dict(zip(own, values, strict=True))
            one = config.copy_and_resolve_references()
            with one.unlocked():
                for path, value in chosen.items():
                    override(one, path, value, "--sweep")
                check_used([one], chosen, "--sweep")
                one.name = _name_values(config, chosen)
                if config.baseline in by_name:
                    one.baseline = _name_values(by_name[config.baseline], chosen)
                if first := by_name.get(one.start.config):
                    one.start.config = _name_values(first, _leave_out_start(chosen))
            swept.append(one)
    if len({config.name for config in swept}) < len(swept):
        raise UserError("--sweep: name every value once, and settings whose last parts differ.")
    return swept


def _name_values(config: ConfigDict, chosen: Mapping[str, str]) -> str:
    """Returns a config's name with the chosen values of those settings that it has."""
    names = {path: "from" if path == START else path.rpartition(".")[2] for path in chosen}
    values = (
        f",{names[path]}={value or 'none'}"
        for path, value in chosen.items()
        if has_setting(config, path)
    )
    return config.name + "".join(values)


def _leave_out_start(chosen: Mapping[str, str]) -> dict[str, str]:
    """Returns the chosen values, with an empty one for the config to start from if it is swept."""
    return {path: "" if path == START else value for path, value in chosen.items()}


def _convert(example: object, value: object, setting: str) -> object:
    """Returns a value, or the value that a text stands for, in the kind of an example."""
    if isinstance(example, str) and isinstance(value, str):
        return value
    converted = value
    if isinstance(value, str):
        try:
            text = value.capitalize() if isinstance(example, bool) else value
            converted = ast.literal_eval(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            pass  # it stays a text, which is not like anything else
    if isinstance(example, float) and type(converted) is int:
        try:
            return float(converted)
        except OverflowError:
            return math.inf  # the limits refuse it
    if isinstance(example, tuple) and isinstance(converted, list):
        return tuple(converted)
    if type(converted) is not type(example):
        raise UserError(f"{setting}={value}: it is not {describe_kind(example)}")
    return converted
