"""Checksums of a checkpoint's files: a bit that a disk or a copy has flipped is noticed before it is used.

Of its own, Orbax's store notices in its lists of arrays, but not in the arrays.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from experiments.core import files

NAME = "checksums.json"
CHUNK = 1 << 20


def write_checksums(folder: Path) -> None:
    """Notes the checksums of all files of a checkpoint's parts, in the checkpoint."""
    sums = {
        file.relative_to(folder).as_posix(): _crc32(file)
        for file in sorted(folder.glob("*/**/*"))
        if file.is_file()
    }
    files.write_json(folder / NAME, {"crc32": sums, "crc32_of_these": _crc32_of(sums)})


def changed_file(folder: Path) -> Path | None:
    """The first file that is not what was written; None where none is, or where nothing is noted of them.

    One that is missing is not named here: whether it is needed, its reader knows.
    """
    for name, expected in noted(folder).items():
        file = folder / name
        try:
            if _crc32(file) != expected:
                return file
        except FileNotFoundError:
            pass
    return None


def is_changed(folder: Path, name: str) -> bool:
    """Whether one file of a checkpoint, which there is, is not what was written."""
    expected = noted(folder).get(name)
    return expected is not None and _crc32(folder / name) != expected


def noted(folder: Path) -> dict[str, int]:
    """The checksums that a checkpoint has: none from before there were any, or where they are damaged."""
    try:
        found = json.loads((folder / NAME).read_bytes())
        sums = found["crc32"]
        return sums if _crc32_of(sums) == found["crc32_of_these"] else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _crc32(file: Path) -> int:
    total = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def _crc32_of(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
