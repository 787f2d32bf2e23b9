"""Checksums of checkpoints: finds damaged ones before they are used, and sets them aside.

Orbax verifies its index but not the array data: a flipped bit would go unnoticed.
"""

import enum
import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax

from experiments.core.checked_json import Metric, Record, read_json
from experiments.core.console import print_line
from experiments.core.digests import compute_file_crc32, compute_json_crc32
from experiments.core.errors import UserError
from experiments.core.files import write_json
from experiments.core.hosts import max_over_hosts
from experiments.runs.schema import CHECKSUMS, list_steps

CHECKSUMS_FILE = "checksums.json"

Value = TypeVar("Value")


class Outcome(enum.IntEnum):
    """The result of reading a checkpoint on one host; the worst one counts for all hosts."""

    READ = 0
    UNREADABLE = 1  # memory or storage failed; the files may be intact
    DAMAGED = 2


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files in a checkpoint's parts into the checkpoint."""
    checksums = {
        file.relative_to(folder).as_posix(): compute_file_crc32(file)
        for file in sorted(folder.glob("*/**/*"))
        if file.is_file()
    }
    write_json(
        folder / CHECKSUMS_FILE,
        {"crc32": checksums, "crc32_of_these": compute_json_crc32(checksums)},
    )


def read_checksums(folder: Path) -> dict[str, int]:
    """Returns a checkpoint's checksums by file name; none if it has no intact list of them."""
    try:
        content = read_json(folder / CHECKSUMS_FILE, CHECKSUMS)
    except (FileNotFoundError, UserError):
        return {}
    checksums = content["crc32"]
    return checksums if compute_json_crc32(checksums) == content["crc32_of_these"] else {}


def find_damaged_file(folder: Path, below: str = "") -> Path | None:
    """Returns the first file below a part of a checkpoint that is missing or differs from its checksum.

    A checkpoint without checksums has no damaged file.
    """
    for name, checksum in read_checksums(folder).items():
        file = folder / name
        # Not a pipe or a device, which have no end.
        if name.startswith(below) and (not file.is_file() or compute_file_crc32(file) != checksum):
            return file
    return None


def restore_or_set_aside(folder: Path, restore: Callable[[], Value]) -> Value | None:
    """Returns what `restore` reads from a checkpoint, or None after moving a damaged one away.

    All hosts call it for the same checkpoint. What one of them finds damaged is damaged for all.

    Raises:
        UserError: if memory or storage failed; the checkpoint stays where it is.
    """
    value, damaged_file, error = None, None, None
    try:
        if jax.process_index() == 0:
            damaged_file = find_damaged_file(folder)
        if damaged_file is None:
            value = restore()
    except Exception as caught:  # readers of torn files raise whatever they come across
        error = caught
    outcome = max_over_hosts(_classify_read(folder, damaged_file, error))
    if outcome == Outcome.READ:
        return value
    if damaged_file:
        reason = "it differs from its checksum"
    else:
        reason = describe_cause(error) if error else "another host cannot read it"
    if outcome == Outcome.UNREADABLE:
        raise UserError(
            f"The checkpoint {folder} cannot be read at the moment ({reason}). It stays where it is: give "
            "the same command again when the cause is gone."
        ) from error
    if error or jax.process_index() == 0:
        warn(f"{damaged_file or folder} is damaged ({reason})")
    if jax.process_index() == 0:
        warn(f"checkpoint {folder.name} is not used; it is now {set_aside(folder)}")
    max_over_hosts(Outcome.READ)  # no host looks for checkpoints before this one has been moved
    return None


def set_aside_without_metrics(directory: Path, metric: str | None) -> None:
    """Moves away the checkpoints whose metrics are lost: Orbax would not open the folder with them in it."""
    if jax.process_index() == 0:
        for step in list_steps(directory.parent):
            folder = directory / str(step)
            if file := _find_lost_metrics(folder, metric):
                warn(f"{file} is damaged")
                warn(f"checkpoint {folder.name} is not used; it is now {set_aside(folder)}")
    max_over_hosts(Outcome.READ)


def set_aside(folder: Path) -> Path:
    """Moves a checkpoint to `damaged`, beside the folder of checkpoints, and returns its new path."""
    target = folder.parent.parent / "damaged" / folder.name
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}-{number}")
    target.parent.mkdir(exist_ok=True)
    return folder.rename(target)


def describe_cause(error: BaseException) -> str:
    """Returns the message of the error at the root of a chain, in one line of at most 200 characters."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    # tensorstore appends its settings to what it has to say.
    text = " ".join(str(error).partition(" [tensorstore_spec")[0].split()) or type(error).__name__
    return text if len(text) <= 200 else f"...{text[-200:]}"


def warn(text: str) -> None:
    """Prints a warning to standard error."""
    print_line(f"warning: {text}.", error=True)


def _classify_read(folder: Path, damaged_file: Path | None, error: Exception | None) -> Outcome:
    if damaged_file:
        return Outcome.DAMAGED
    if error is None:
        return Outcome.READ
    missing = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR)
    if isinstance(error, MemoryError | OSError) and not missing:
        return Outcome.UNREADABLE
    # If the files are what was written, the trouble lies elsewhere.
    return Outcome.UNREADABLE if read_checksums(folder) else Outcome.DAMAGED


def _find_lost_metrics(folder: Path, metric: str | None) -> Path | None:
    """Returns the damaged file of a checkpoint's metrics, or None if they are fine or were never written."""
    file = folder / "metrics" / "metrics"
    needed = (metric, "loss") if metric else ()
    try:
        read_json(file, Record(dict.fromkeys(needed, Metric()), needed=needed))
    except UserError:
        return file
    except FileNotFoundError:
        if file.parent.exists():
            return file
    return find_damaged_file(folder, below="metrics/")
