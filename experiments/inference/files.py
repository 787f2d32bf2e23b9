"""What a finished run is asked about: files of pictures or series, read and prepared ahead of their turn."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from experiments.core import listing
from experiments.core.errors import UserError
from experiments.data import Example, pictures, ucr
from experiments.data.reading import THREADS, File, prefetch_map
from experiments.data.ucr import prepare_like_training
from experiments.inference.trained import Trained

In, Out = TypeVar("In"), TypeVar("Out")


@dataclasses.dataclass(frozen=True)
class Item:
    """What was found in a file, which may hold several.

    Attributes:
        file: where it was found.
        place: where in the file: the values of the kind's columns.
        example: as the network sees it; None where it cannot be used.
        reason: why it cannot be used.
    """

    file: File
    place: tuple[object, ...]
    example: Example | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        columns: what tells where in a file an example is, if a file may hold several.
        read: (network, file) to all that is in the file; it may raise anything.
    """

    columns: tuple[str, ...]
    read: Callable[[Trained, File], Iterable[Item]]


def kind_of(trained: Trained) -> Kind:
    """Which files a network can be asked about."""
    return PICTURES if len(trained.shape) == 3 else SERIES


def given(
    paths: Sequence[str], but: Sequence[Path] = (), suffixes: Sequence[str] = ()
) -> Iterator[File]:
    """All files that were given or are in folders that were given, none before its turn.

    Args:
        paths: files and folders.
        but: files and folders in those folders that are not meant, such as what is being written.
        suffixes: which files in those folders are meant, in small letters; without any, all.

    Raises:
        UserError: if one does not exist.
    """
    absolute = {Path(os.path.realpath(path)) for path in but}
    single = len(paths) == 1
    taken: set[str] = set()
    for word in paths:
        path = Path(word).expanduser()
        if path.is_dir():
            above = "" if single else f"{_own(path.resolve().name, taken)}/"
            for file in listing.list_files(path, absolute):
                if suffixes and file.suffix.lower() not in suffixes:
                    continue
                yield File(file, above + file.relative_to(path).as_posix())
        elif path.exists():
            yield File(path, _own(path.name, taken))
        else:
            raise UserError(f"There is no file or folder {path}.")


def items(trained: Trained, files: Iterable[File]) -> Iterator[Item]:
    """What is in the files, in their order; a file that cannot be read is one item without an example.

    A few files are read and prepared ahead by threads, never more.
    """
    kind = kind_of(trained)

    def read(file: File) -> list[Item]:
        try:
            return list(kind.read(trained, file))
        except Exception as error:  # Decoders raise whatever their formats suggest.
            return [Item(file, ("",) * len(kind.columns), None, pictures.describe_error(error))]

    with pictures.silence_pillow():
        for found in prefetch_map(read, files, THREADS):
            yield from found


def _picture(trained: Trained, file: File) -> Iterator[Item]:
    raw = pictures.decode_picture(file.path, trained.shape[-1])
    yield Item(file, (), trained.prepare(raw))


def _series(trained: Trained, file: File) -> Iterator[Item]:
    for row in ucr.read_series(file.path, labelled=False):
        try:
            example, reason = trained.prepared(prepare_like_training(row, trained.shape)), ""
        except ValueError as error:
            example, reason = None, str(error)
        yield Item(file, (row.line,), example, reason)


def _own(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    own, number = name, 1
    while own in taken:
        number += 1
        own = f"{Path(name).stem}-{number}{Path(name).suffix}"
    taken.add(own)
    return own


PICTURES = Kind((), _picture)
SERIES = Kind(("line",), _series)
