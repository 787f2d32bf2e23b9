"""Loads an experiment's settings from a Python file, `FILE[:ARGUMENT]`, as ml_collections does."""

import importlib.util
import os
import re
from pathlib import Path

from ml_collections import ConfigDict

from experiments.core.errors import UserError, suggest_nearest

CONFIGS = Path(__file__).parents[1] / "configs"
SHARED = "common"  # in a folder of configs the file that the others are made from


def load_config_file(place: str) -> ConfigDict:
    """Runs the config file at `FILE[:ARGUMENT]`, and returns what its `get_config` returns.

    The name of a file of `experiments/configs` is enough.
    """
    file, colon, argument = place.partition(":")
    path = Path(file)
    if re.fullmatch(r"[A-Za-z_]\w{,80}", file) and not path.exists():  # the name of one of ours
        path = CONFIGS / f"{file}.py"
    if path.suffix != ".py" or not os.path.isfile(path):  # Path.is_file fails for long names
        known = list_configs(path if os.path.isdir(path) else path.parent)
        hint = suggest_nearest(path.stem, known) if known else "; its folder holds no configs."
        raise UserError(f"There is no config {path}{hint}")
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            others = ", ".join(name for name in list_configs(path.parent) if name != path.stem)
            raise UserError(
                f"{path} is not a config, because it has no get_config. Its folder has {others}."
            )
        config = module.get_config(*([argument] if colon else []))
    except UserError:
        raise
    except Exception as error:  # of any kind: people write config files themselves
        raise UserError(
            f"The config {path} fails: {type(error).__name__}: {error} (--debug shows the traceback)."
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path} is not a config: its get_config returns {config!r} instead of a ConfigDict."
        )
    return config


def list_configs(folder: Path) -> list[str]:
    """Returns the names of the configs in a folder."""
    return sorted(p.stem for p in folder.glob("*.py") if p.stem[0] != "_" and p.stem != SHARED)


def find_setting(config: ConfigDict, path: str, flag: str = "--config.") -> object:
    """Returns the value of the one setting at a dotted path, such as `optimizer.learning_rate`.

    A UserError begins with `flag` and the path.
    """
    value, above = config, ""
    for key in path.split("."):
        if not isinstance(value, ConfigDict):
            raise UserError(f"{flag}{path}: {above} is one setting and holds no others.")
        if key not in value:
            near = suggest_nearest(key, value)
            if not above and "did you mean" not in near:
                near = "; a config has only the settings that its task, data, network and convolution use."
            where = f" in {above}" if above else ""
            raise UserError(f"{flag}{path}: there is no setting '{key}'{where}{near}")
        value, above = value[key], f"{above}.{key}".removeprefix(".")
    if isinstance(value, ConfigDict):
        raise UserError(f"{flag}{path}: it is a group of settings: {', '.join(value)}.")
    return value
