"""Where data lives on this machine."""

import os
import pathlib


def data_dir(config) -> pathlib.Path:
    """Returns the folder for downloaded and prepared data; it may not exist yet.

    Args:
        config: the data part of the configuration; its `dir` wins over `$DYN_DATA_DIR`, which wins
            over `~/.cache/dyn`.
    """
    chosen = config.dir or os.environ.get("DYN_DATA_DIR") or "~/.cache/dyn"
    return pathlib.Path(chosen).expanduser().absolute()


def source_path(config) -> pathlib.Path | None:
    """Returns the user's `source` as a path with `~` resolved, or None where none was given."""
    return pathlib.Path(config.source).expanduser().absolute() if config.source else None
