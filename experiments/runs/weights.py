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

from dyn.interop.safetensors_file import read_safetensors
from experiments.configs.shared.assemble import restore_config
from experiments.core.checked_json import parse_json
from experiments.core.errors import UserError
from experiments.core.files import replace_file, to_json
from experiments.runs.schema import WEIGHTS_METADATA

SUFFIX = ".safetensors"
MODEL = f"model{SUFFIX}"
"""The file of a folder that `experiments.load` takes like a run."""
MAX_DEPTH = 100


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


def check_new_folder(out: Path, overwrite: bool) -> None:
    """Raises a UserError for a folder in which `MODEL` cannot be written."""
    if out.is_file():
        raise UserError(f"--out={out} is a file: give a folder.")
    if (out / "summary.json").exists():
        raise UserError(f"--out={out} is the folder of a run: choose another.")
    if (out / MODEL).exists() and not overwrite:
        raise UserError(f"{out / MODEL} exists: choose another --out, or give --overwrite.")


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
            texts = file.metadata() or {}
        if not {"config", "classes", "shape"} <= texts.keys():
            raise UserError(
                f"{path} has no metadata about its network: give a file that experiments.export wrote."
            )
        metadata = {
            name: _parse_metadata(name, texts[name]) for name in WEIGHTS_METADATA if name in texts
        }
        variables = _unflatten(read_safetensors(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error
    metadata["config"] = restore_config(metadata["config"], path)
    return variables, metadata


def _unflatten(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the variables of arrays by path.

    Raises:
        ValueError: for a path that is also the start of another one, or that is too long for a network's.
    """
    for name in arrays:
        parts = name.split("/")
        if len(parts) > MAX_DEPTH:
            raise ValueError(f"an array is in more than {MAX_DEPTH} layers of layers")
        for number in range(1, len(parts)):
            if (start := "/".join(parts[:number])) in arrays:
                raise ValueError(f"{start} is an array and has an array in it, {name}")
    # Collections without arrays are not in the file.
    empty = {"params": {}, "batch_stats": {}, "attention": {}}
    return {**empty, **traverse_util.unflatten_dict(dict(arrays), sep="/")}


def _parse_metadata(name: str, text: str) -> Any:
    try:
        return parse_json(text, WEIGHTS_METADATA[name])
    except ValueError as error:
        raise ValueError(f"its {name}: {error}") from error
