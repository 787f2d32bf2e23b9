"""A run's folder: whose it is, what it says of the run, and the words for it."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.configs import common
from experiments.core import files
from experiments.core.errors import UserError
from experiments.core.files import to_json

# Settings that change where a run reads and what it shows, but not what it computes.
FREE = {
    "data.source",
    "data.dir",
    "data.max_skipped",
    "input.threads",
    "input.workers",
    "tensorboard",
    "wandb",
    "shard_parameters",  # a checkpoint fits either way
}


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of the folder for the time of a `with`.

    The system takes the lock back from a process that dies, so a crash leaves nothing to clean up. Where a
    file system knows no locks (a mounted bucket may not), there is none.

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
                f"{workdir} is in use by {file.read().strip() or 'another process'}: wait for its end, stop "
                "it, or choose another --workdir."
            ) from error
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def claim(workdir: Path, config: ConfigDict) -> None:
    """Notes the config in the folder, which there is, or checks that the folder is this config's.

    Raises:
        UserError: if the folder belongs to a run with other settings, or cannot be written.
    """
    file = workdir / "config.json"
    mine = _settings(config)
    try:
        # A run that never came to a checkpoint has nothing to lose: whoever mistyped a setting may
        # correct it and go on in the same place.
        if not file.exists() or not _has_results(workdir):
            files.write_json(file, config.to_dict())
            return
        theirs = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be used: {error}.") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); choose another --workdir.") from error
    if not isinstance(theirs, dict):
        raise UserError(f"{file} holds no settings of a run; choose another --workdir.")
    # A setting that is younger than the run does nothing where it has its default, as it did not then.
    young = {key: value for key, value in _settings(common.get_config()).items() if key in mine}
    theirs = {**young, **_flat(theirs)}
    differing = [
        f"{key} was {theirs.get(key)!r} and is now {mine.get(key)!r}"
        for key in {**theirs, **mine}
        if key not in FREE and theirs.get(key) != mine.get(key)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with other settings: {'; '.join(differing)}. Choose another "
            "--workdir for the new settings, or repeat the old ones to continue that run."
        )


def _settings(config: ConfigDict) -> dict[str, Any]:
    """The settings by their dotted names, as a file of JSON has them."""
    return _flat(json.loads(json.dumps(to_json(config.to_dict()))))


def _has_results(workdir: Path) -> bool:
    """Whether there is a checkpoint, or the summary of a finished run."""
    steps = (workdir / "checkpoints").glob("*")
    return (workdir / "summary.json").exists() or any(step.name.isdigit() for step in steps)


def finished_summary(workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that is finished, or None.

    Raises:
        UserError: if there is one that cannot be read.
    """
    file = workdir / "summary.json"
    try:
        summary = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): delete it, and the run continues from its last checkpoint."
        ) from error
    if not isinstance(summary, dict):
        raise UserError(f"{file} holds no summary of a run; choose another --workdir.")
    return summary


def parameters_sha256(params: Any) -> str:
    """A checksum over names, types, shapes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(flax.traverse_util.flatten_dict(params, sep="/").items()):
        array = np.asarray(jax.device_get(value))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What the run was computed with."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    found = {"python": platform.python_version()}
    return found | {package: metadata.version(package) for package in packages}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(dict(tree), sep=".")
