"""Paths of the user's data and of prepared data on this machine."""

import os
from pathlib import Path

from ml_collections import ConfigDict


def get_data_dir(config: ConfigDict) -> Path:
    """Returns the folder for downloaded and prepared data, which may not exist yet.

    Args:
        config: the data section of the configuration; its `dir` takes precedence over `$DYN_DATA_DIR`,
            which takes precedence over `~/.cache/dyn`.
    """
    chosen = config.dir or os.environ.get("DYN_DATA_DIR") or "~/.cache/dyn"
    return Path(chosen).expanduser().absolute()


def get_source_path(config: ConfigDict) -> Path | None:
    """Returns the user's `source` as an absolute path, or None if it is not set."""
    return Path(config.source).expanduser().absolute() if config.source else None
