"""Checkpoints that cannot be read: which file is to blame, whether it will pass, where they are put."""

import errno
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import tensorstore
from jax.experimental import multihost_utils

from experiments.core.errors import UserError
from experiments.runs.checksums import changed_file, is_changed

Value = TypeVar("Value")

# How it went on a host; of several hosts the one that fared worst decides for all.
READ, DAMAGED, UNREADABLE = range(3)
# What the storage answers (as tensorstore words it) when the trouble is its own and not the file's.
_STORAGE = re.compile(
    r"^(CANCELLED|UNKNOWN|DEADLINE_EXCEEDED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL"
    r"|UNAVAILABLE|UNAUTHENTICATED): "
)
_MISSING = (None, errno.ENOENT, errno.ENOTDIR)
PAUSE_SECONDS = 1.0


def read_or_set_aside(folder: Path, read: Callable[[], Value]) -> Value | None:
    """What `read` makes of a checkpoint; None where it is damaged, and then it is moved away.

    All hosts call it for the same checkpoint. What one of them cannot read is damaged for all.

    Raises:
        UserError: if the memory or the storage failed, twice; the checkpoint stays where it is.
    """
    value, error = None, None
    for last in (False, True):
        try:
            value, error = read(), None
            break
        except Exception as caught:  # a torn file shows itself in whatever way its reader has
            error = caught
            if not is_passing(error):
                break
            if not last:
                time.sleep(PAUSE_SECONDS)
    mine = READ if error is None else UNREADABLE if is_passing(error) else DAMAGED
    # Looked at before another host may move it.
    file = damaged_file(folder) if mine == DAMAGED else folder
    worst = max_over_hosts(mine)
    if worst == READ:
        return value
    reason = innermost(error) if error else "another host cannot read it"
    if worst == UNREADABLE:
        raise UserError(
            f"The checkpoint {file} cannot be read at the moment ({reason}). It stays where it is: give "
            "the same command again when that has passed."
        ) from error
    if mine == DAMAGED or jax.process_index() == 0:
        warn(f"{file} is damaged ({reason})")
    if jax.process_index() == 0:
        warn(f"checkpoint {folder.name} is not used; it is now {set_aside(folder)}")
    max_over_hosts(READ)  # nobody looks before it has been moved
    return None


def set_aside_without_metrics(directory: Path) -> None:
    """Moves away the checkpoints whose evaluation is lost: none could say which of them is the best."""
    if jax.process_index() == 0:
        for folder in sorted(directory.glob("*")):
            if folder.name.isdigit() and (reason := _lost_metrics(folder)):
                file = folder / "metrics" / "metrics"
                warn(f"{file} is damaged ({reason})")
                warn(f"checkpoint {folder.name} is not used; it is now {set_aside(folder)}")
    max_over_hosts(READ)


def _lost_metrics(folder: Path) -> str | None:
    """What is wrong with a checkpoint's metrics; None where nothing is, or where there never were any."""
    try:
        json.loads((folder / "metrics" / "metrics").read_text())
        if is_changed(folder, "metrics/metrics"):
            return "it is not what was written, by its checksum"
    except ValueError as error:
        return innermost(error)
    except FileNotFoundError:
        try:
            listed = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
        except (OSError, ValueError, KeyError):
            listed = {}
        if "metrics" in listed or (folder / "metrics").exists():
            return "it is missing"
    return None


def set_aside(folder: Path) -> Path:
    """Moves a checkpoint to `damaged` beside the folder of checkpoints; returns where it is now."""
    target = folder.parent.parent / "damaged" / folder.name
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}-{number}")
    target.parent.mkdir(exist_ok=True)
    return Path(folder).rename(target)


def is_passing(error: BaseException) -> bool:
    """Whether memory or storage failed, so that the files themselves may be whole."""
    return any(
        isinstance(one, MemoryError)
        or (isinstance(one, OSError) and one.errno not in _MISSING)
        or _STORAGE.match(str(one))
        for one in _chain(error)
    )


def refuses_writing(error: BaseException) -> bool:
    """Whether storage is why something could not be written."""
    return is_passing(error) or any("Error writing" in str(one) for one in _chain(error))


def damaged_file(folder: Path) -> Path:
    """The first file of a checkpoint that is missing, cut off or garbled; else the folder."""
    if changed := changed_file(folder):
        return changed
    for file in (
        *(folder / "progress" / "metadata", folder / "state" / "_METADATA"),
        *sorted((folder / "state" / "array_metadatas").glob("*")),
    ):
        try:
            json.loads(file.read_text())
        except FileNotFoundError:
            if file.parent.name == "progress":  # Orbax does without the others
                return file
        except ValueError:
            return file
    return _damaged_array_file(folder / "state") or folder


def _damaged_array_file(folder: Path) -> Path | None:
    """The first file in which arrays, or lists of them, are not where the checkpoint says they are."""
    store = tensorstore.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()
    file = folder / "manifest.ocdbt"
    if not file.is_file():
        return file
    try:
        places = [tensorstore.ocdbt.dump(store).result()["versions"][-1]["root"]["location"]]
        while places:
            place = places.pop()
            kind, base, path, start, length = place.split(":")
            file = folder / base / path
            if not file.is_file() or file.stat().st_size < int(start) + int(length):
                return file
            if kind == "btreenode":
                entries = tensorstore.ocdbt.dump(store, place).result()["entries"]
                found = [entry.get("location") or entry.get("indirect_value") for entry in entries]
                places += filter(None, found)
    except ValueError:
        return file
    return None


def innermost(error: BaseException) -> str:
    """The words of the error that caused the others, in one line of no great length."""
    # What comes behind is the reader's own settings.
    text = str(list(_chain(error))[-1]).partition(" [tensorstore_spec")[0]
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 200 else f"...{text[-200:]}"  # the cause is at the end


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def warn(text: str) -> None:
    """Prints a line that is no part of the run's output."""
    print(f"warning: {text}.", file=sys.stderr)


def max_over_hosts(number: int) -> int:
    """The largest of the hosts' numbers; none returns before all have come."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
