"""Makes configs with the settings that an experiment has, and no others."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.shared.recipes import DATASETS
from experiments.configs.shared.settings import (
    LAYER_SECTIONS,
    SECTIONS,
    Kind,
    list_paths,
    select_settings,
)
from experiments.core.errors import UserError

KNOWN = {path for path, _ in list_paths(SECTIONS)}


def make_config(kind: Kind, *recipes: Mapping[str, Any]) -> ConfigDict:
    """Returns the defaults of an experiment's settings, changed by recipes, of which later ones win.

    Recipes may change settings that this experiment does not have. The config is locked.
    """
    values = {path: setting.default for path, setting in select_settings(kind).items()}
    for recipe in (*map(list_paths, recipes), kind.choices.items()):
        values |= {path: value for path, value in recipe if path in values}
    return _nest(values)


def complete_config(config: ConfigDict) -> ConfigDict:
    """Returns a config with exactly the settings of its task, data, network and convolution.

    A flag may have changed one of these. The settings that the experiment has since then get the defaults of
    its data set, the settings that it no longer has go. Others are a UserError.
    """
    kind = Kind.from_config(config)
    values = dict(list_paths(make_config(kind, DATASETS.get(kind.data, {}))))
    for path, value in list_paths(config):
        if path in values or _is_layer_field(path, values):
            values[path] = value
        elif path not in KNOWN and path.partition(".")[0] not in LAYER_SECTIONS:
            raise UserError(
                f"The config {config.name} has a setting '{path}', which does not exist."
            )
    return _nest(values)


def restore_config(saved: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of a run from the settings that it wrote, perhaps with an older version.

    A setting that is younger than the run has its default. A setting that the experiment does not have, such
    as that of another task, is left out.
    """
    values = dict(list_paths(make_config(Kind.from_config(saved))))
    for path, value in list_paths(saved):
        if path in values or _is_layer_field(path, values):
            values[path] = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
    return _nest(values)


def drop_unused(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the saved settings of a run without those that it had no use for.

    Versions before the sections wrote the settings of all tasks and data into every run.
    """
    used = select_settings(Kind.from_config(saved))
    unused = KNOWN - used.keys()
    return {
        name: {key: v for key, v in value.items() if f"{name}.{key}" not in unused}
        if isinstance(value, Mapping)
        else value
        for name, value in saved.items()
        if name not in unused
    }


def _is_layer_field(path: str, values: Mapping[str, Any]) -> bool:
    """Returns whether a path names a field of a layer that an experiment has."""
    section = path.partition(".")[0]
    return section in LAYER_SECTIONS and f"{section}.name" in values


def _nest(values: Mapping[str, Any]) -> ConfigDict:
    """Returns a locked config from values by dotted path."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return ConfigDict(nested).lock()
