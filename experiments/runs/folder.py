"""The folder of a run: its place, its lock and its config."""

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

from experiments.configs.shared.assemble import keep_former_defaults
from experiments.configs.shared.settings import FREE_SETTINGS, LAYER_SECTIONS
from experiments.core import files
from experiments.core.console import print_line
from experiments.core.differences import describe_differences
from experiments.core.errors import UserError
from experiments.core.files import to_json
from experiments.runs.schema import (
    CHECKPOINTS,
    CONFIG_FILE,
    SUMMARY_FILE,
    find_settings,
    list_steps,
    read_config,
)

# The files and folders of a run.
OUTPUT_FILES = (
    CONFIG_FILE, SUMMARY_FILE, "summary.txt", "metrics.jsonl", "skipped.csv", "splits.csv", "confusion.csv",
    "per_class.csv", "maps.npz", "samples.npz", "data.json", "data.jsonl.gz",
)  # fmt: skip
OUTPUT_FOLDERS = (CHECKPOINTS, "figures", "damaged", "bad_step")
URL_MARKS = ("\\", ":/")
PATTERN_MARKS = ("*", "?", "[")
SHOWN = 12  # differences in a message
MAX_PATH_BYTES = 3800  # of 4096, because the files of a checkpoint lie deep


class InUseError(UserError):
    """The folder of a run is in use by another process."""


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of the folder during a `with` block.

    The system releases the lock when a process dies, so a crash leaves nothing to clean up. A file system
    without locks (a mounted bucket may be one) gives no protection.

    Raises:
        InUseError: if another process holds the folder.
        UserError: if it cannot be written.
    """
    check_place(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Not through a link: the file is emptied below.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = open(os.open(workdir / "lock", flags, 0o666), "a+")
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be used: {error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InUseError(
                f"{workdir} is in use by {file.read().strip() or 'another process'}: wait until it ends, "
                "stop it, or choose another --workdir."
            ) from error
        except OSError:
            pass  # no locks here
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def continue_with_former_defaults(workdir: Path, config: ConfigDict) -> ConfigDict:
    """Returns a run's config: one that was begun when a convolution had other defaults keeps them."""
    try:
        saved, _ = find_settings(workdir)
    except UserError:
        return config  # `check_or_write_config` says what is wrong with the file
    return keep_former_defaults(config, saved) if saved and has_results(workdir) else config


def check_or_write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the config into an existing folder, or checks that the folder's run has the same settings.

    Raises:
        UserError: if the folder belongs to a run with other settings, or cannot be written.
    """
    file = workdir / CONFIG_FILE
    # A run without a checkpoint has nothing to lose: whoever mistyped a setting may correct it and continue
    # in the same place.
    if not has_results(workdir):
        _write_config(file, config)
        return
    saved, origin = read_config(workdir)
    old, new = _flatten_config(saved), _flatten_config(config)
    # For other tasks and data it is enough to name the settings that this config has. A field that a layer's
    # section does not have is one that the layer's default applies to.
    sections = {name.partition(".")[0] for name in new}
    sections &= {*LAYER_SECTIONS}
    names = [n for n in {**old, **new} if n in new or n.partition(".")[0] in sections]
    # A study may have moved, or be given by another path; the weights are in the checkpoints already.
    free = FREE_SETTINGS | ({"init_from"} if new.get("start.config") else set())
    if not new.get("init_from"):
        free |= {"start.awake", "start.noise"}  # only trained weights are taken over by these
    compared = [name for name in names if name not in free]
    if differences := describe_differences(old, new, names=compared, limit=SHOWN):
        raise UserError(
            f"{workdir} holds a run with other settings: {differences}. Choose another --workdir for the new "
            "settings, or repeat the old ones to continue that run."
        )
    if origin != file:
        _write_config(file, config)
        print_line(f"warning: {file} was missing; it has been restored from {origin}.", error=True)


def check_place(workdir: Path) -> None:
    """Checks that checkpoints can be written into a folder, and that no output is of the wrong kind there.

    Raises:
        UserError: names what is in the way.
    """
    check_name(workdir, writing=True)
    for name in OUTPUT_FILES:
        if os.path.exists(path := workdir / name) and not os.path.isfile(path):
            raise UserError(
                f"{path} is not a regular file: move it away; the run writes a file there."
            )
    for name in OUTPUT_FOLDERS:
        if os.path.exists(path := workdir / name) and not os.path.isdir(path):
            raise UserError(f"{path} is not a folder: move it away; the run writes a folder there.")


def check_name(workdir: Path, writing: bool = False) -> None:
    """Checks that Orbax takes the path of a run for what it is: it has URLs, and patterns where it writes.

    Raises:
        UserError: names the part of the path that it takes for something else.
    """
    path = f"{workdir.absolute()}/"
    wrong = [mark for mark in (*URL_MARKS, *(PATTERN_MARKS if writing else ())) if mark in path]
    reason = f"has {' and '.join(map(repr, wrong))} in its path" if wrong else ""
    if any("\ud800" <= mark <= "\udfff" for mark in path):
        reason = "has a path that is not UTF-8"
    elif len(os.fsencode(path)) > MAX_PATH_BYTES:
        reason = f"has a path of more than {MAX_PATH_BYTES:,} bytes"
    if reason:
        raise UserError(
            f"{workdir} {reason}, which the library that writes checkpoints cannot use: rename the folder, "
            "or choose another --workdir."
        )


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


def has_results(workdir: Path) -> bool:
    """Returns whether the folder has a checkpoint, or the summary of a finished run."""
    return os.path.exists(workdir / SUMMARY_FILE) or bool(list_steps(workdir))


def _write_config(file: Path, config: ConfigDict) -> None:
    try:
        files.write_json(file, config.to_dict())
    except OSError as error:
        raise UserError(f"The workdir {file.parent} cannot be used: {error}.") from error


def _flatten_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings by their dotted names, as a JSON file holds them."""
    return flax.traverse_util.flatten_dict(to_json(config.to_dict()), sep=".")
