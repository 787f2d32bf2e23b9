"""The settings of a config as flags: fields of layers that a config does not have, and a list for --help."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.configs.shared.layers import has_default, list_layer_fields
from experiments.configs.shared.limits import SETTINGS, describe_allowed
from experiments.configs.shared.settings import (
    LAYER_FIELDS,
    LAYER_SECTIONS,
    Kind,
    Setting,
    list_paths,
    select_settings,
)
from experiments.core.errors import UserError, suggest_nearest

COLUMN = 44  # of the meanings
KIND_FIELDS = tuple(field.name for field in dataclasses.fields(Kind))


def add_settings(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Adds the settings that flags are about to set and that a config does not have yet.

    They are those of another task, data set, network or convolution, if a flag chooses one, with the
    defaults of `settings.py`, and fields of layers, with the layers' own.

    Args:
        config: the config.
        overrides: the text of each flag by dotted path.

    Raises:
        UserError: if a layer has no such field.
    """
    _add_settings_of_choices(config, overrides)
    _add_layer_fields(config, overrides)


def _add_settings_of_choices(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    kind = Kind.from_config(config)
    chosen = {
        field: overrides.get(path, value)
        for (path, value), field in zip(kind.choices.items(), KIND_FIELDS, strict=True)
    }
    settings = select_settings(Kind(**chosen))
    known = {path for path, _ in list_paths(config)}
    with config.unlocked():
        for path in overrides.keys() & (settings.keys() - known):
            section, _, name = path.rpartition(".")
            value = {name: settings[path].default}
            config.update({section: value} if section else value)


def _add_layer_fields(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Adds fields of layers: a section of a layer holds only those that the config sets."""
    for path in overrides:
        section, _, field = path.partition(".")
        if (
            section not in LAYER_SECTIONS
            or section not in config
            or field in ("", *config[section])
        ):
            continue
        layer = overrides.get(f"{section}.name", config[section].name)
        fields = list_layer_fields(section, layer)
        if field not in fields:
            known = dict.fromkeys((*config[section], *fields))
            raise UserError(
                f"--config.{path}: {layer} has no field '{field}'{suggest_nearest(field, known)}"
            )
        with config[section].unlocked():
            config[section][field] = fields[field]


def describe_settings(config: ConfigDict) -> str:
    """Returns a line for each setting of a config: its flag, its value, its meaning and its limits."""
    lines = [f"The settings of {config.name} on {config.dataset}, and their values:", ""]
    lines += [_describe(path, value) for path, value in list_paths(config)]
    for section in LAYER_SECTIONS:
        if section in config:
            layer = config[section].name
            for name, value in list_layer_fields(section, layer).items():
                if name not in config[section]:
                    known = has_default(section, layer, name)
                    lines.append(_describe(f"{section}.{name}", value, known))
    return "\n".join(lines)


def _describe(path: str, value: object, is_default: bool = True) -> str:
    setting = SETTINGS.get(path, Setting(value, LAYER_FIELDS.get(path)))
    notes = [setting.meaning, describe_allowed(setting)]
    if not is_default:
        notes.insert(0, "the layer decides unless it is set")
    flag = f"  --config.{path}={_format(value) if is_default else ''}"
    return f"{flag:{COLUMN}}  {'; '.join(filter(None, notes))}".rstrip()


def _format(value: object) -> str:
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)
