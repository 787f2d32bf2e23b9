"""A trained network in one file of safetensors: its arrays by path, and beside them what they mean."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from experiments.core.errors import UserError
from experiments.core.files import replace_file, to_json
from experiments.inference.trained import Trained, config_of

SUFFIX = ".safetensors"


def write(trained: Trained, path: str | os.PathLike, versions: dict[str, str]) -> None:
    """Writes `params/...`, `batch_stats/...` and `attention/...`, and what they are of as metadata.

    Args:
        trained: the network.
        path: the file.
        versions: of what it was trained with, kept as `versions`.
    """
    # Not `ascontiguousarray`, which makes vectors of scalars.
    arrays = {
        name: np.asarray(leaf, order="C")
        for name, leaf in traverse_util.flatten_dict(dict(trained.variables), sep="/").items()
    }
    about: dict[str, Any] = {
        "config": trained.config.to_dict(),
        "classes": list(trained.classes),
        "shape": list(trained.shape),
        "versions": versions,
    }
    metadata = {name: json.dumps(to_json(value)) for name, value in about.items()}
    with replace_file(path) as temporary:
        # Not `save_file`, whose file nobody else may read.
        temporary.write_bytes(save(arrays, metadata))


def written_here(path: str | os.PathLike) -> bool:
    """Whether a file is one of `write`'s, and not of weights that others have trained."""
    try:
        with safe_open(Path(path), "numpy") as file:
            return "config" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read(path: str | os.PathLike) -> Trained:
    """The network that `write` wrote.

    Raises:
        UserError: if the file cannot be read, or was written by something else.
    """
    try:
        with safe_open(Path(path), "numpy") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        config, classes, shape = (
            json.loads(about[name]) for name in ("config", "classes", "shape")
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except KeyError as error:
        raise UserError(
            f"{path} does not say what network its parameters are of (no {error}): give a file that "
            "experiments.export has written."
        ) from error
    return Trained(config_of(config), classes, tuple(shape), _whole(arrays))


def _whole(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The collections, also those that have no arrays."""
    nested = traverse_util.unflatten_dict(arrays, sep="/")
    return {"params": {}, "batch_stats": {}, "attention": {}, **nested}
