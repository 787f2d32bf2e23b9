"""The folder of a run: its lock, its config and its summary."""

import contextlib
import fcntl
import hashlib
import os
import platform
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.configs.shared.assemble import keep_former_norm, restore_config
from experiments.configs.shared.settings import LAYER_SECTIONS
from experiments.core import files
from experiments.core.differences import describe_differences
from experiments.core.errors import UserError
from experiments.core.files import to_json

# Settings that change where a run reads and what it shows, but not what it computes.
FREE_SETTINGS = {
    "data.source", "data.dir", "data.max_skipped", "input.threads", "input.workers", "tensorboard", "wandb",
    "shard_parameters",  # a checkpoint fits either way
}  # fmt: skip


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of the folder during a `with` block.

    The system releases the lock when a process dies, so a crash leaves nothing to clean up. A file system
    without locks (a mounted bucket may be one) gives no protection.

    Raises:
        UserError: if another process holds the folder, or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("a+")
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be used: {error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by {file.read().strip() or 'another process'}: wait until it ends, "
                "stop it, or choose another --workdir."
            ) from error
        except OSError:
            pass  # no locks here
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def continue_with_former_norm(workdir: Path, config: ConfigDict) -> ConfigDict:
    """Returns a run's config: one that was begun when attention had a batch norm by default keeps it."""
    try:
        saved = files.read_json_object(workdir / "config.json")
    except (OSError, ValueError):
        return config  # `check_or_write_config` writes the file, or says what is wrong with it
    return keep_former_norm(config, saved) if _has_results(workdir) else config


def check_or_write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the config into an existing folder, or checks that the folder's run has the same settings.

    Raises:
        UserError: if the folder belongs to a run with other settings, or cannot be written.
    """
    file = workdir / "config.json"
    try:
        # A run without a checkpoint has nothing to lose: whoever mistyped a setting may correct it and
        # continue in the same place.
        if not file.exists() or not _has_results(workdir):
            files.write_json(file, config.to_dict())
            return
        old = _flatten_config(restore_config(files.read_json_object(file)))
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be used: {error}.") from error
    except (AttributeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); choose another --workdir.") from error
    new = _flatten_config(config)
    # For other tasks and data it is enough to name the settings that this config has. A field that a layer's
    # section does not have is one that the layer's default applies to.
    sections = {name.partition(".")[0] for name in new}
    sections &= {*LAYER_SECTIONS}
    names = [n for n in {**old, **new} if n in new or n.partition(".")[0] in sections]
    compared = [name for name in names if name not in FREE_SETTINGS]
    if differences := describe_differences(old, new, names=compared):
        raise UserError(
            f"{workdir} holds a run with other settings: {differences}. Choose another --workdir for the new "
            "settings, or repeat the old ones to continue that run."
        )


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """Reads the summary of a finished run; None if the run is not finished.

    Raises:
        UserError: if there is a summary that cannot be read.
    """
    file = workdir / "summary.json"
    try:
        return files.read_json_object(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): delete it, and the run continues from its last checkpoint."
        ) from error


def hash_parameters(params: Any) -> str:
    """Returns the SHA-256 over the names, dtypes, shapes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(flax.traverse_util.flatten_dict(params, sep="/").items()):
        array = np.asarray(jax.device_get(value))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def list_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a run is computed with."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {package: metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **versions}


def _has_results(workdir: Path) -> bool:
    """Returns whether the folder has a checkpoint, or the summary of a finished run."""
    steps = (workdir / "checkpoints").glob("*")
    return (workdir / "summary.json").exists() or any(step.name.isdigit() for step in steps)


def _flatten_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings by their dotted names, as a JSON file holds them."""
    return flax.traverse_util.flatten_dict(to_json(config.to_dict()), sep=".")
