"""What files there are in a folder of a person's."""

import os
import pathlib
from collections.abc import Collection, Iterator


def list_files(folder: pathlib.Path, but: Collection[pathlib.Path] = ()) -> Iterator[pathlib.Path]:
    """The files in a folder and the folders below it, by name; names that begin with a dot are left out.

    A folder is looked into when its turn comes: however many there are, they are not listed all at once.

    Args:
        folder: where to look; links are followed.
        but: files and folders to leave out, as absolute paths.
    """
    visited = set()
    for where, inner, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(where)
        if place in visited:  # A link that leads back would be followed round and round.
            inner.clear()
            continue
        visited.add(place)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        inner[:] = [name for name in inner if pathlib.Path(place, name) not in but]
        for name in sorted(names):
            if not name.startswith(".") and pathlib.Path(place, name) not in but:
                yield pathlib.Path(where, name)
