"""Keeps apart the files that a command has written from those of people and of other commands.

A folder of results has a table of the files in it that were written, with their digests. A file that has
changed since then, such as a selection table that somebody has corrected, is no longer the command's own.
"""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from experiments.core import files
from experiments.core.errors import UserError

MANIFEST = "written.csv"
HEADER = ("file", "sha256")
_KEPT = ".earlier"


def list_own_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Returns the files below a folder that its manifest names and that have not changed, with their digests.

    Args:
        folder: the folder of the results.
        suffixes: the ends of their names; others are left out, and so are paths that leave the folder.

    Raises:
        UserError: if there is a file of the manifest's name that is none.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        digests = read_manifest(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --out.") from error
    if digests is None:
        raise UserError(f"{path} is not the list of what was predicted: choose another --out.")
    own = {}
    for name, digest in digests.items():
        relative = PurePosixPath(name)
        inside = not relative.is_absolute() and ".." not in relative.parts
        if inside and name.endswith(suffixes) and compute_sha256(folder / relative) == digest:
            own[name] = digest
    return own


def read_manifest(path: Path) -> dict[str, str] | None:
    """Returns the digests in a manifest, by the paths of the files below its folder; None for another table.

    Raises:
        OSError, ValueError, csv.Error: if it cannot be read.
    """
    header, *rows = files.read_csv(path) or [[]]
    if tuple(header) != HEADER:
        return None
    return {row[0]: row[1] for row in rows if len(row) >= len(HEADER)}


def compute_sha256(path: Path) -> str:
    """Returns the digest of a file's content; '' if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def set_aside(path: Path) -> Path:
    """Renames a file to one of a free name, such as `x.earlier.txt`, and returns its path."""
    number = 1
    while True:
        more = _KEPT if number == 1 else f"{_KEPT}-{number}"
        free = path.with_name(f"{path.stem}{more}{path.suffix}")
        if not free.exists():
            return path.rename(free)
        number += 1


def check_replaceable(path: Path, header: Sequence[str]) -> None:
    """Raises a UserError if there is a file at `path` that is not a table with this header.

    A list of skipped files of an earlier command is replaced without a question; another file is not.
    """
    if not path.exists():
        return
    try:
        first = (files.read_csv(path) or [[]])[0]
    except (OSError, ValueError, csv.Error):
        first = []
    if first != list(header):
        raise UserError(
            f"{path} exists, and this command has not written it: choose another --out."
        )
