"""Loads an experiment's settings from a Python file, `FILE[:ARGUMENT]`, as ml_collections does."""

import importlib.util
import os
import re
from pathlib import Path

from ml_collections import ConfigDict

from experiments.core.errors import UserError, suggest_nearest
from experiments.core.help_pages import read_summary

CONFIGS = Path(__file__).parents[1] / "configs"
SHARED = "common"  # in a folder of configs the file that the others are made from


def load_config_file(place: str) -> ConfigDict:
    """Runs the config file at `FILE[:ARGUMENT]`, and returns what its `get_config` returns.

    FILE is a path, or names a file of this package's `experiments/configs`; see `find_config_file`.
    """
    file, colon, argument = place.partition(":")
    path = find_config_file(file)
    if path.suffix != ".py" or not os.path.isfile(path):  # Path.is_file fails for long names
        known = list_configs(path if os.path.isdir(path) else path.parent)
        hint = suggest_nearest(path.stem, known) if known else "; its folder holds no configs."
        raise UserError(f"There is no config {file}{hint}")
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


def find_config_file(file: str) -> Path:
    """Returns the path of a config, which may not exist.

    `odconv`, `odconv.py` and `experiments/configs/odconv.py` name the file of this package, wherever it is
    installed, if there is no such file in the working directory.
    """
    path = Path(file)
    ours = path.parent.parts in ((), ("experiments", "configs"))
    if ours and re.fullmatch(r"[A-Za-z_]\w{,80}(\.py)?", path.name) and not os.path.exists(path):
        return CONFIGS / f"{path.stem}.py"
    return path


def list_configs(folder: Path) -> list[str]:
    """Returns the names of the configs in a folder."""
    return sorted(p.stem for p in folder.glob("*.py") if p.stem[0] != "_" and p.stem != SHARED)


def describe_configs(folder: Path) -> dict[str, str]:
    """Returns the first lines of the docstrings of the configs in a folder, by name."""
    return {name: read_summary(folder / f"{name}.py") for name in list_configs(folder)}


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
