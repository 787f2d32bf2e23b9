"""Small files that a run leaves for people and scripts, each written whole or not at all."""

import contextlib
import csv
import errno
import json
import math
import os
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Of errors in writing: the disk is full, the quota used up, the file too large, the file system read-only.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file; its folder is created where it is missing."""
    with replace_file(path) as temporary:
        # File names need not be UTF-8; what is not comes out as \\udcXX, which JSON reads back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, obj: object) -> None:
    """Writes a JSON file (`summary.json`, `config.json`).

    Args:
      path: the file; its folder is created where it is missing.
      obj: dictionaries, lists and scalars (Python, numpy or jax). Keys keep their order; NaN
        and infinity become null; what JSON does not know (a path, a type) becomes its `str`.
    """
    write_text(path, json.dumps(to_json(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON file that holds one object, such as `summary.json`.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is not JSON, or holds something other than an object.
    """
    value = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def write_csv(
    path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Writes a table of comma-separated values; None is an empty cell."""
    options = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with replace_file(path) as temporary, open(temporary, "w", **options) as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file, as `numpy.savez` would if an array could be called `file`."""
    with replace_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


@contextlib.contextmanager
def append_csv(
    path: str | os.PathLike,
    header: Sequence[str],
    overwrite: bool = False,
    dialect: str | type[csv.Dialect] = "excel",
) -> Iterator[Callable[[Iterable[Sequence[object]]], None]]:
    """Writes a table of comma-separated values while it is being made.

    The file begins to exist with the first rows, and each call hands its rows to the system: what was made
    before a crash is there.

    Args:
      path: the file; its folder is created where it is missing.
      header: names of the columns.
      overwrite: whether a file that is there may be replaced.
      dialect: of the module csv.

    Yields:
      A function that appends rows.

    Raises:
      FileExistsError: with the first rows, if there is such a file that may not be replaced.
    """
    with contextlib.ExitStack() as stack:
        file = table = None

        def append(rows: Iterable[Sequence[object]]) -> None:
            nonlocal file, table
            if file is None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                options = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
                file = stack.enter_context(open(path, "w" if overwrite else "x", **options))
                table = csv.writer(file, dialect)
                table.writerow(header)
            table.writerows(rows)
            file.flush()

        yield append


def write_skipped(
    workdir: str | os.PathLike, skipped: Sequence[tuple[str | os.PathLike, str]]
) -> Path | None:
    """Writes `skipped.csv`: which files of a data set were left out, and why.

    One from before goes where nothing is skipped any more.

    Args:
      workdir: the folder of the run.
      skipped: file and reason, one pair per file.

    Returns:
      The path of the table, or None where nothing was skipped and nothing is written.
    """
    path = Path(workdir) / "skipped.csv"
    if not skipped:
        path.unlink(missing_ok=True)
        return None
    write_csv(path, ["file", "reason"], ((str(name), reason) for name, reason in skipped))
    return path


def to_json(value: object) -> object:
    """The nearest thing that JSON can say.

    Args:
      value: Python, numpy or jax scalars and arrays, and dictionaries, lists, tuples and sets
        of them. Anything else becomes its `str`.

    Returns:
      Python's own dict, list, str, bool, int, float and None. NaN and infinity become None.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [to_json(item) for item in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return to_json(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file that takes the place of `path` at the end: all of it, or nothing.

    Args:
      path: the file to write or to replace; its folder is created where it is missing.

    Yields:
      The path to write to. On an exception it is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hosts that share the folder may have processes of one number: in a container it is often 1.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
