"""Lists the files below a user's folder, and tells files from what is none."""

import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path


def list_files(folder: Path, exclude: Collection[Path] = ()) -> Iterator[Path]:
    """Yields the files in a folder and the folders below it, sorted by name, without hidden ones.

    Folders are read one by one, so that even millions of files are never listed all at once.

    Args:
        folder: where to start; links are followed.
        exclude: files and folders to leave out, as absolute paths.
    """
    visited = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:  # A link back to a parent would never end.
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in folders if Path(real, name) not in exclude]
        for name in sorted(names):
            if not name.startswith(".") and Path(real, name) not in exclude:
                yield Path(current, name)


def check_regular_file(path: str | os.PathLike) -> None:
    """Raises an OSError if a path is no file, or a pipe or a device: to read one may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
