"""The settings of a config as flags: fields of layers that a config does not have, and a list for --help."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.configs.shared.layers import has_default, list_layer_fields
from experiments.configs.shared.limits import SETTINGS, describe_allowed
from experiments.configs.shared.settings import LAYER_FIELDS, LAYER_SECTIONS, Setting, list_paths
from experiments.core.errors import UserError, suggest_nearest

COLUMN = 44  # of the meanings


def add_layer_fields(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Adds the fields of a layer that flags are about to set, with the layer's own defaults.

    A config's section of a layer holds only the fields that the config sets.

    Args:
        config: the config.
        overrides: the text of each flag by dotted path; one may choose another layer.

    Raises:
        UserError: if the layer has no such field.
    """
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
