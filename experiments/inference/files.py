"""Files of pictures or series, read and prepared for a trained network."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from experiments.core import listing
from experiments.core.console import Progress
from experiments.core.errors import UserError
from experiments.data import Example, pictures, ucr
from experiments.data.reading import THREADS, File, prefetch_map
from experiments.data.ucr import prepare_like_training
from experiments.inference.trained import Trained


@dataclasses.dataclass(frozen=True)
class Item:
    """One example of a file as the network sees it, or the reason why there is none.

    The `position` has the values of `list_position_columns`.
    """

    file: File
    position: tuple[object, ...]
    example: Example | None
    reason: str = ""


def list_position_columns(trained: Trained) -> tuple[str, ...]:
    """Returns the columns of a table that locate an example in its file: a series has a line."""
    return () if trained.is_picture else ("line",)


def expand_paths(
    paths: Sequence[str], exclude: Sequence[Path] = (), suffixes: Sequence[str] = ()
) -> Iterator[File]:
    """Yields the files among `paths`, and those in the folders among them, without listing all first.

    From folders, takes files with `suffixes` (lower case; by default all files), but none in `exclude`.

    Raises:
        UserError: if a path does not exist.
    """
    excluded = {Path(os.path.realpath(path)) for path in exclude}
    taken: set[str] = set()
    for word in paths:
        path = Path(word).expanduser()
        if path.is_dir():
            prefix = "" if len(paths) == 1 else f"{_make_unique(path.resolve().name, taken)}/"
            for file in listing.list_files(path, excluded):
                if not suffixes or file.suffix.lower() in suffixes:
                    yield File(file, prefix + file.relative_to(path).as_posix())
        elif path.exists():
            yield File(path, _make_unique(path.name, taken))
        else:
            raise UserError(f"There is no file or folder {path}.")


def _make_unique(name: str, taken: set[str]) -> str:
    """Returns the name, with a number appended if it is taken, and adds it to `taken`."""
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{Path(name).stem}-{number}{Path(name).suffix}"
    taken.add(unique)
    return unique


def check_inputs(paths: Sequence[str], batch_size: int) -> None:
    """Raises a UserError if there are no paths, or the batch size is invalid."""
    if not paths:
        raise UserError("Nothing to read: give files or folders after the run.")
    if batch_size < 0:
        raise UserError(f"--batch_size={batch_size}: choose 1 or more, or 0 for the run's.")


def track_progress(files: Iterable[File], progress: Progress) -> Iterator[File]:
    """Yields the files, and shows how many are finished."""
    for number, file in enumerate(files):
        progress.update(number)
        yield file


def read_items(trained: Trained, files: Iterable[File]) -> Iterator[Item]:
    """Yields the examples of all files, in order; a file that cannot be read is one item without an example.

    Threads read and prepare a few files ahead.
    """
    read = _read_picture if trained.is_picture else _read_series

    def read_file(file: File) -> list[Item]:
        try:
            return list(read(trained, file))
        except Exception as error:  # Decoders raise errors of many types.
            blank = ("",) * len(list_position_columns(trained))
            return [Item(file, blank, None, pictures.describe_error(error))]

    with pictures.silence_pillow():
        for items in prefetch_map(read_file, files, THREADS):
            yield from items


def _read_picture(trained: Trained, file: File) -> Iterator[Item]:
    yield Item(file, (), trained.prepare(pictures.decode_picture(file.path, trained.shape[-1])))


def _read_series(trained: Trained, file: File) -> Iterator[Item]:
    for series in ucr.read_series(file.path, labelled=False):
        position = (series.line,)
        try:
            example = trained.transform(prepare_like_training(series, trained.shape))
            yield Item(file, position, example)
        except ValueError as error:
            yield Item(file, position, None, str(error))
