"""Detections in recordings: classes of windows, joined over time, and written to tables for Raven."""

import contextlib
import csv
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments.audio import raven
from experiments.core import files

RAVEN_SUFFIX = ".dyn.selections.txt"
LABEL_SUFFIX = ".dyn.labels.txt"
"""The end of the names of Audacity's label tracks."""
NAMES = {
    "csv": "predictions.csv",
    "raven": "predictions.raven.txt",
    "kaleidoscope": "predictions.kaleidoscope.csv",
    "birdnet": "predictions.birdnet.csv",
    "parquet": "predictions.parquet",
}
"""Name of the table over all recordings in each format; Audacity has none."""
EDITABLE = tuple(name for kind, name in NAMES.items() if kind != "parquet")
"""Those that people correct."""


class RavenDialect(csv.Dialect):
    """Values between tabs without quotes, which Raven does not know."""

    delimiter = "\t"
    quoting = csv.QUOTE_NONE
    quotechar = None
    lineterminator = "\n"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A window without its samples: `start` and `end` in seconds; `silent` if all samples are equal."""

    start: float
    end: float
    silent: bool


@dataclasses.dataclass(frozen=True)
class Detection:
    """A class that was detected in one or more consecutive windows.

    Attributes:
        number: class number.
        start, end: in seconds.
        score: mean score of the windows.
        silent: whether all windows are silent.
        windows: number of windows.
    """

    number: int
    start: float
    end: float
    score: float
    silent: bool
    windows: int = 1

    def extend(self, window: Interval, score: float) -> "Detection":
        """Returns the detection with one more window."""
        windows = self.windows + 1
        mean = self.score + (score - self.score) / windows
        silent = self.silent and window.silent
        return dataclasses.replace(self, end=window.end, score=mean, silent=silent, windows=windows)


def select_classes(
    scores: np.ndarray, threshold: float | np.ndarray, several: bool
) -> dict[int, float]:
    """Returns the detected classes of a window and their scores, the highest score first.

    Args:
        scores: `[C]`.
        threshold: minimum score, or that of each class, `[C]`.
        several: whether a window may have several classes; otherwise only the highest score counts (for
            ties, the first class).

    Example:
        >>> select_classes(np.array([0.3, 0.1, 0.6]), 0.2, several=True)
        {2: 0.6, 0: 0.3}
        >>> select_classes(np.array([0.3, 0.1, 0.6]), 0.2, several=False)
        {2: 0.6}
    """
    order = np.argsort(-scores, kind="stable")[: None if several else 1]
    reached = scores >= threshold
    return {int(number): float(scores[number]) for number in order if reached[number]}


def join_intervals(
    detected: Iterable[tuple[Interval, Mapping[int, float]]], max_windows: int = 1
) -> Iterator[Detection]:
    """Joins consecutive windows with the same class into detections.

    Args:
        detected: windows in the order of time, and the scores of their classes.
        max_windows: maximum number of windows per detection; 1 joins none.

    Yields:
        Detections in the order of their last windows.

    Example:
        >>> one, two, three = (Interval(s, s + 1, False) for s in (0.0, 1.0, 2.0))
        >>> joined = join_intervals([(one, {7: 0.5}), (two, {7: 1.0}), (three, {})], max_windows=3)
        >>> [(d.number, d.start, d.end, d.score) for d in joined]
        [(7, 0.0, 2.0, 0.75)]
    """
    active: dict[int, Detection] = {}
    for window, scores in detected:
        for number, detection in list(active.items()):
            gap = window.start > detection.end  # After a hop longer than a window.
            if number not in scores or detection.windows == max_windows or gap:
                yield active.pop(number)
        for number, score in scores.items():
            if number in active:
                active[number] = active[number].extend(window, score)
            else:
                active[number] = Detection(number, window.start, window.end, score, window.silent)
    yield from active.values()


@contextlib.contextmanager
def open_raven_table(
    path: Path, recording: Path, low: float, high: float
) -> Iterator[Callable[[str, Detection], None]]:
    """Opens a selection table, to which detections are appended one by one; an empty one has a header.

    Args:
        path: the table; an existing one is replaced.
        recording: the sound file, for Raven to open.
        low, high: lowest and highest frequency of all selections in Hz.

    Yields:
        A function that appends a label and its detection.
    """
    number = 0
    with files.append_csv(path, raven.COLUMNS, overwrite=True, dialect=RavenDialect) as append:
        append([])

        def append_selection(label: str, detection: Detection) -> None:
            nonlocal number
            number += 1
            box = (detection.start, detection.end, low, high)
            sound = str(recording.absolute())
            append([raven.make_row(number, *box, label, detection.score, sound)])

        yield append_selection
