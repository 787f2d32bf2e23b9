"""Makes configs with the settings that an experiment has, and no others."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.shared.limits import check_saved_settings
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
# Settings that choose a method, and their values for none.
METHODS = {"attention.name": "none", "model.context": "input"}
# Defaults of convolutions that changed: what they were and what they are. New runs write these settings down;
# a run that did not is an old one.
_NORM = {"conv.attention_norm": ("batch", "layer")}
CHANGED_DEFAULTS = {
    "fdconv": {**_NORM, "conv.min_features": (0, 16), "conv.bands": (False, True)},
    **dict.fromkeys(("odconv", "rotated", "warehouse"), _NORM),
}


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
    its data set, the settings that it no longer has go. Others are a UserError, and so is a method that would
    go with its setting: what remains would be the static network.
    """
    kind = Kind.from_config(config)
    values = dict(list_paths(make_config(kind, DATASETS.get(kind.data, {}))))
    for path, value in list_paths(config):
        if path in values or _is_layer_field(path, values):
            values[path] = value
        elif path in METHODS and value != METHODS[path]:
            raise UserError(
                f"The config {config.name} has {path}={value}, which the network {kind.network} has no place "
                f"for in {kind.task}: choose another --config.model.network, or --config.{path}="
                f"{METHODS[path]}."
            )
        elif path not in KNOWN and path.partition(".")[0] not in LAYER_SECTIONS:
            raise UserError(
                f"The config {config.name} has a setting '{path}', which does not exist."
            )
    return _nest(_write_defaults(values, former=False))


def restore_config(
    saved: Mapping[str, Any], source: object = "the config of the run"
) -> ConfigDict:
    """Returns the config of a run from the settings that it wrote, perhaps with an older version.

    A setting that is younger than the run has its default, but for `start.awake`, which says how the run
    began. A setting that the experiment does not have, such as that of another task, is left out.

    Raises:
        UserError: if a value has another type than the setting or lies outside its limits; the message begins
            with `source`.
    """
    check_saved_settings(saved, source)
    values = dict(list_paths(make_config(Kind.from_config(saved))))
    if saved.get("init_from") and "start.awake" in values:
        values["start.awake"] = False
    for path, value in list_paths(saved):
        if path in values or _is_layer_field(path, values):
            values[path] = _convert_from_json(value, values.get(path))
    return _nest(_write_defaults(values, former=True))


def keep_former_defaults(config: ConfigDict, saved: Mapping[str, Any]) -> ConfigDict:
    """Returns a config that continues a run: with the defaults of the convolution when it began.

    Args:
        config: the settings of now.
        saved: the settings that the run wrote.
    """
    values, old = dict(list_paths(config)), dict(list_paths(saved))
    if values.get("conv.name") != old.get("conv.name"):
        return config
    changed = CHANGED_DEFAULTS.get(values.get("conv.name"), {})
    former = {path: before for path, (before, _) in changed.items() if path not in old}
    return _nest(former | values)


def _convert_from_json(value: Any, default: Any) -> Any:
    """Returns a value with the type of its default, as far as JSON does not have it."""
    if isinstance(value, list):
        return tuple(value)
    return float(value) if isinstance(default, float) else value


def drop_unused(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the saved settings of a run without those that it had no use for.

    Versions before the sections wrote the settings of all tasks and data into every run.
    """
    used = select_settings(Kind.from_config(saved))
    unused = KNOWN - used.keys()
    saved = _nest(_write_defaults(dict(list_paths(saved)), former=True)).to_dict()
    return {
        name: {key: v for key, v in value.items() if f"{name}.{key}" not in unused}
        if isinstance(value, Mapping)
        else value
        for name, value in saved.items()
        if name not in unused
    }


def _write_defaults(values: Mapping[str, Any], *, former: bool) -> dict[str, Any]:
    """Adds the defaults of the convolution that changed, as they were or as they are, to settings."""
    changed = CHANGED_DEFAULTS.get(values.get("conv.name"), {})
    return {path: before if former else now for path, (before, now) in changed.items()} | dict(
        values
    )


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
