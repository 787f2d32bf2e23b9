"""Small files that a run leaves for people and scripts, each written whole or not at all."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import socket
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.core.errors import UserError
from experiments.core.escaping import escape_cell, restore_cell
from experiments.core.text import read_text

MEGABYTE = 1 << 20
# Errors in writing: the disk is full, the quota used up, the file too large, the file system read-only.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
FOR_SPREADSHEETS = "utf-8-sig"
"""Encoding of tables that people edit: without the mark at its start, Excel takes UTF-8 for Windows-1252."""


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file; its folder is created where it is missing."""
    with replace_file(path) as temporary:
        # File names need not be UTF-8; what is not comes out as \\udcXX, which JSON reads back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_own_text(path: str | os.PathLike, mark: str) -> None:
    """Raises a UserError if there is a file at `path` without a text that all of a command's files have.

    A command that may be repeated at any time replaces its own files, and no others.
    """
    path = Path(path)
    if not path.exists():
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} exists, and cannot be read ({error}): choose another --out."
        ) from error
    if mark.encode() not in content:
        raise UserError(
            f"{path} exists, and this command has not written it: choose another --out."
        )


def write_json(path: str | os.PathLike, obj: object) -> None:
    """Writes a JSON file such as `summary.json` of what `to_json` takes; its folder is created."""
    write_text(path, json.dumps(to_json(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_small_file(path: str | os.PathLike, max_bytes: int = MEGABYTE) -> bytes:
    """Reads a whole file.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it is a folder, a pipe or a device, too large, or cannot be read.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} cannot be read: it is a folder.")
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody who writes into it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} cannot be read: it is not a regular file.")
            content = b"" if status.st_size > max_bytes else file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a name with a null character
        raise UserError(f"{path} cannot be read: {error}.") from error
    if max(status.st_size, len(content)) > max_bytes:
        raise UserError(
            f"{path} cannot be read: it has {max(status.st_size, len(content)):,} bytes, more than the "
            f"{max_bytes:,} that such a file may have."
        )
    return content


def write_csv(
    path: str | os.PathLike,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    encoding: str = "utf-8",
) -> None:
    """Writes a table of comma-separated values; None is an empty cell, and formulas are escaped.

    `read_csv` returns what was written.
    """
    options = {"encoding": encoding, "errors": "backslashreplace", "newline": ""}
    with replace_file(path) as temporary, open(temporary, "w", **options) as file:
        table = csv.writer(file)
        table.writerow(map(escape_cell, header))
        table.writerows(map(escape_cell, row) for row in rows)


def read_csv(path: str | os.PathLike) -> list[list[str]]:
    """Reads a table of comma-separated values, with the header as its first row.

    Raises:
        OSError, ValueError or csv.Error: if it cannot be read.
    """
    lines = io.StringIO(read_text(path), newline="")
    return [[restore_cell(cell) for cell in row] for row in csv.reader(lines)]


def read_csv_records(path: str | os.PathLike) -> list[dict[str, str]]:
    """Reads the rows of a table by the names of its columns, without empty rows; see `read_csv`.

    A cell that a short row lacks is empty.
    """
    header, *rows = read_csv(path) or [[]]
    empty = [""] * len(header)
    return [dict(zip(header, [*row, *empty], strict=False)) for row in rows if row]


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
    encoding: str = "utf-8",
) -> Iterator[Callable[[Iterable[Sequence[object]]], None]]:
    """Yields a function that appends rows to a table, as `write_csv` writes one.

    Values of another dialect are written as they are: only spreadsheets know formulas.

    The file begins to exist with the first rows, and each call hands its rows to the system: what was made
    before a crash is there.

    Raises:
        FileExistsError: with the first rows, if the file exists and `overwrite` is false.
    """
    escape = escape_cell if dialect == "excel" else lambda cell: cell
    with contextlib.ExitStack() as stack:
        file = table = None

        def append(rows: Iterable[Sequence[object]]) -> None:
            nonlocal file, table
            if file is None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                options = {"encoding": encoding, "errors": "backslashreplace", "newline": ""}
                file = stack.enter_context(open(path, "w" if overwrite else "x", **options))
                table = csv.writer(file, dialect)
                table.writerow(map(escape, header))
            table.writerows(map(escape, row) for row in rows)
            file.flush()

        yield append


def write_skipped(
    workdir: str | os.PathLike, skipped: Sequence[tuple[str | os.PathLike, str]]
) -> Path | None:
    """Writes files that were left out, and the reasons, to `skipped.csv`, and returns its path.

    If there are none, an earlier table is removed, and None is returned.
    """
    path = Path(workdir) / "skipped.csv"
    if not skipped:
        path.unlink(missing_ok=True)
        return None
    write_csv(path, ["file", "reason"], ((str(name), reason) for name, reason in skipped))
    return path


def to_json(value: object) -> object:
    """Converts scalars, arrays and containers of Python, NumPy and JAX to what JSON knows.

    NaN and infinity become None, and other objects, such as paths and types, their `str`.
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
    """Yields a temporary path to write to, which replaces `path` at the end; its folder is created.

    On an exception the temporary file is removed, and `path` stays as it was.
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
