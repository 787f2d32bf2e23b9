"""Files of safetensors: a network's arrays by path, and metadata that says which network they belong to."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from experiments.configs.shared.assemble import restore_config
from experiments.core.checked_json import parse_json
from experiments.core.errors import UserError
from experiments.core.files import replace_file, to_json
from experiments.runs.schema import WEIGHTS_METADATA

SUFFIX = ".safetensors"


def write_weights(
    path: str | os.PathLike, variables: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Writes the arrays `params/...`, `batch_stats/...` and `attention/...`, and the metadata as JSON.

    The metadata are `config`, `classes`, `shape` and `versions` of the network.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    # Not `ascontiguousarray`, which makes vectors of scalars.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}
    texts = {name: json.dumps(to_json(value)) for name, value in metadata.items()}
    with replace_file(path) as temporary:
        # Not `save_file`, whose files only their owner may read.
        temporary.write_bytes(save(arrays, texts))


def is_export(path: str | os.PathLike) -> bool:
    """Returns whether a file was written by `write_weights`, and not by another program."""
    try:
        with safe_open(Path(path), "numpy") as file:
            return "config" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read_weights(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the variables and the metadata that `write_weights` wrote, with the config restored.

    Raises:
        UserError: if the file cannot be read, or another program wrote it.
    """
    try:
        with safe_open(Path(path), "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            texts = file.metadata() or {}
        if not {"config", "classes", "shape"} <= texts.keys():
            raise UserError(
                f"{path} has no metadata about its network: give a file that experiments.export wrote."
            )
        metadata = {
            name: _parse_metadata(name, texts[name]) for name in WEIGHTS_METADATA if name in texts
        }
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    metadata["config"] = restore_config(metadata["config"], path)
    # Collections without arrays are not in the file.
    empty = {"params": {}, "batch_stats": {}, "attention": {}}
    return {**empty, **traverse_util.unflatten_dict(arrays, sep="/")}, metadata


def _parse_metadata(name: str, text: str) -> Any:
    try:
        return parse_json(text, WEIGHTS_METADATA[name])
    except ValueError as error:
        raise ValueError(f"its {name}: {error}") from error
