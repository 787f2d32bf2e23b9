"""Files as pieces of which a network makes a code each: pictures, or windows of recordings."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.core.errors import UserError
from experiments.data import Example
from experiments.data.reading import File
from experiments.inference import files as predict_files
from experiments.inference.trained import Trained

Clock = collections.Counter
"""Seconds by what they were spent on."""
Skip = Callable[[str, str], None]
"""Is told of a file, and why it cannot be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """What has one code.

    Attributes:
        file: its path below the folder that was given.
        start, end: where in a recording it is, in seconds; NaN of a picture.
        silent: whether a window has nothing in it.
        example: as the network sees it.
        samples: of a window, float32 `[n]`.
    """

    file: str
    start: float
    end: float
    silent: bool
    example: Example
    samples: np.ndarray | None = None


def usable(trained: Trained, paths: Sequence[str], but: Path) -> list[File]:
    """The files that were given, and of folders those that could be of the network's kind.

    Args:
        trained: the network.
        paths: files and folders.
        but: a folder in them that is not meant.

    Raises:
        UserError: if a path does not exist, or nothing is there.
    """
    suffixes: Sequence[str] = ()
    if trained.hears:
        from experiments.audio.recordings import SUFFIXES as suffixes  # of libraries of its own

    found = list(predict_files.given(paths, (but,), suffixes))
    if not found:
        what = "recording" if trained.hears else "file"
        raise UserError(f"There is no {what} in {', '.join(map(str, paths))}.")
    return found


def pieces(
    trained: Trained,
    files: Iterator[File],
    skip: Skip,
    say: Callable[[str], None],
    clock: Clock,
) -> Iterator[Piece]:
    """All pieces of the files, in their order.

    Of a recording that breaks off, the windows before that are used.

    Args:
        trained: the network.
        files: in the order in which they are read.
        skip: is told of files that cannot be used.
        say: is told what is odd about files that can be.
        clock: the seconds that `spectrograms` take are added to it.
    """
    if not trained.hears:
        for item in predict_files.items(trained, files):
            if item.example is None:
                skip(item.file.name, item.reason)
            else:
                yield Piece(item.file.name, np.nan, np.nan, False, item.example)
        return
    from experiments.inference import audio_windows as listening

    def unusable(file: File, reason: str) -> None:
        skip(file.name, reason)

    audio, noted = listening.settings(trained), set()
    for of, window in listening.recorded(files, audio, unusable, say):
        with timed(clock, "spectrograms"):
            example = listening.see(trained, window, audio)
        if of.note and of.file.name not in noted:
            noted.add(of.file.name)
            say(f"{of.file.name}: {of.note}")
        yield Piece(of.file.name, window.start, window.end, window.silent, example, window.samples)


@contextlib.contextmanager
def timed(clock: Clock, what: str) -> Iterator[None]:
    """Adds the seconds of a `with` to a clock."""
    started = time.perf_counter()
    try:
        yield
    finally:
        clock[what] += time.perf_counter() - started
