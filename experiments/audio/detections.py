"""What is heard where in a recording: labels of windows, windows joined, tables that Raven opens."""

import contextlib
import csv
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments.audio import raven
from experiments.core import files

RAVEN_SUFFIX = ".dyn.selections.txt"


class _Raven(csv.Dialect):
    """Values between tabs; Raven knows no quotes."""

    delimiter = "\t"
    quoting = csv.QUOTE_NONE
    quotechar = None
    lineterminator = "\n"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A window without its samples: `start` and `end` in seconds, `silent` where all of them are the same."""

    start: float
    end: float
    silent: bool


@dataclasses.dataclass(frozen=True)
class Detection:
    """A label, and where it was heard in one or more windows one after another.

    Attributes:
        number: the class's.
        start, end: in seconds.
        score: the mean over the windows.
        silent: whether all windows are.
        windows: how many.
    """

    number: int
    start: float
    end: float
    score: float
    silent: bool
    windows: int = 1

    def with_next(self, window: Interval, score: float) -> "Detection":
        """The same with one more window."""
        number = self.windows + 1
        return Detection(
            self.number,
            self.start,
            window.end,
            self.score + (score - self.score) / number,
            self.silent and window.silent,
            number,
        )


def select_classes(scores: np.ndarray, threshold: float, several: bool) -> dict[int, float]:
    """The classes that are said to be in a window, the highest score first.

    Args:
        scores: `[C]`.
        threshold: the least score.
        several: whether there may be several at once; else only the highest counts, of equals the first.

    Example:
        >>> select_classes(np.array([0.3, 0.1, 0.6]), 0.2, several=True)
        {2: 0.6, 0: 0.3}
        >>> select_classes(np.array([0.3, 0.1, 0.6]), 0.2, several=False)
        {2: 0.6}
    """
    order = np.argsort(-scores, kind="stable")[: None if several else 1]
    return {int(number): float(scores[number]) for number in order if scores[number] >= threshold}


def join_intervals(
    said: Iterable[tuple[Interval, Mapping[int, float]]], most: int = 1
) -> Iterator[Detection]:
    """Joins consecutive windows that have a label in common.

    Args:
        said: windows in the order of time, and the scores of the classes that are in them.
        most: how many windows become one detection at most; 1 joins none.

    Yields:
        Detections in the order of their last windows.

    Example:
        >>> one, two, three = (Interval(s, s + 1, False) for s in (0.0, 1.0, 2.0))
        >>> found = join_intervals([(one, {7: 0.5}), (two, {7: 1.0}), (three, {})], most=3)
        >>> [(d.number, d.start, d.end, d.score) for d in found]
        [(7, 0.0, 2.0, 0.75)]
    """
    going: dict[int, Detection] = {}
    for window, scores in said:
        for number, one in list(going.items()):
            # A hop longer than a window leaves a gap, of which nothing is known.
            if number not in scores or one.windows == most or window.start > one.end:
                yield going.pop(number)
        for number, score in scores.items():
            if number in going:
                going[number] = going[number].with_next(window, score)
            else:
                going[number] = Detection(number, window.start, window.end, score, window.silent)
    yield from going.values()


@contextlib.contextmanager
def open_raven_table(
    path: Path, recording: Path, low: float, high: float
) -> Iterator[Callable[[str, Detection], None]]:
    """Writes a selection table while detections come; one without any has a header.

    Args:
        path: the table; one that is there is replaced.
        recording: where the sound is: Raven opens it from there.
        low: Hz, of all selections.
        high: likewise.

    Yields:
        A function that appends a label and where it was heard.
    """
    number = 0
    with files.append_csv(path, raven.COLUMNS, overwrite=True, dialect=_Raven) as append:
        append([])

        def select(label: str, found: Detection) -> None:
            nonlocal number
            number += 1
            place = (found.start, found.end, low, high)
            where = str(recording.absolute())
            append([raven.make_row(number, *place, label, found.score, where)])

        yield select
