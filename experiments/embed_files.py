"""Files as pieces of which a network makes a code each: pictures, or windows of recordings."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments import predict_files
from experiments.audio import recordings, spectrograms, windows
from experiments.data import Example, pictures
from experiments.errors import UserError
from experiments.predict_files import File
from experiments.trained import Trained

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


def of_sound(trained: Trained) -> bool:
    """Whether a network was trained on recordings."""
    return trained.config.data.name == "audio"


def usable(trained: Trained, paths: Sequence[str], but: Path) -> list[File]:
    """The files that were given, and of folders those that could be of the network's kind.

    Args:
        trained: the network.
        paths: files and folders.
        but: a folder in them that is not meant.

    Raises:
        UserError: if a path does not exist, or nothing is there.
    """
    given = predict_files.given(paths, (but,))
    if of_sound(trained):
        single = {Path(path).expanduser() for path in paths}
        known = recordings.SUFFIXES
        given = (f for f in given if f.path in single or f.path.suffix.lower() in known)
    found = list(given)
    if not found:
        what = "recording" if of_sound(trained) else "file"
        raise UserError(f"There is no {what} in {', '.join(map(str, paths))}.")
    return found


def pieces(trained: Trained, files: Iterator[File], skip: Skip, clock: Clock) -> Iterator[Piece]:
    """All pieces of the files, in their order.

    Of a recording that breaks off, the windows before that are used.

    Args:
        trained: the network.
        files: in the order in which they are read.
        skip: is told of files that cannot be used.
        clock: the seconds that `spectrograms` take are added to it.
    """
    if not of_sound(trained):
        for item in predict_files.items(trained, files):
            if item.example is None:
                skip(item.file.name, item.reason)
            else:
                yield Piece(item.file.name, np.nan, np.nan, False, item.example)
        return
    for file in files:
        end = 0.0
        try:
            for piece in _windows(trained, file, clock):
                end = piece.end
                yield piece
        except ValueError as error:
            skip(file.name, f"{error}{f' (used up to {end:.1f} s)' if end else ''}")
        except OSError as error:
            skip(file.name, pictures.reason(error))


def _windows(trained: Trained, file: File, clock: Clock) -> Iterator[Piece]:
    audio = trained.config.audio
    recording = recordings.probe(file.path, file.name)
    blocks = recordings.stream(recording, audio.sample_rate, audio.channel)
    # What is short is left out of training, but not of what a person asks about.
    pad = "zero" if audio.pad == "drop" else audio.pad
    for window in windows.grid(blocks, audio.sample_rate, audio.seconds, audio.hop, pad):
        with timed(clock, "spectrograms"):
            levels = spectrograms.picture(window.samples, audio)
            example = trained.prepared(levels[..., None])
        yield Piece(file.name, window.start, window.end, window.silent, example, window.samples)


@contextlib.contextmanager
def timed(clock: Clock, what: str) -> Iterator[None]:
    """Adds the seconds of a `with` to a clock."""
    started = time.perf_counter()
    try:
        yield
    finally:
        clock[what] += time.perf_counter() - started
