"""Tables of what was detected in recordings, written as it is found, and the place where they go."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.audio import detections
from experiments.audio.detections import RAVEN_SUFFIX, Interval
from experiments.core import files
from experiments.core.errors import UserError
from experiments.data.reading import File
from experiments.inference import own_files
from experiments.inference.audio_windows import OpenRecording

Append = Callable[[Iterable[Sequence[object]]], None]
"""Appends rows to a table."""

_SKIPPED_HEADER = ("file", "reason")


@dataclasses.dataclass(frozen=True, eq=False)
class TableOptions:
    """The contents of the tables.

    Attributes:
        classes: C names.
        thresholds: the lowest score of each that is written, `[C]`; infinity leaves a class out.
        several: whether a window may have several classes.
        all_scores: whether to write all scores of all windows instead.
        merge: the largest number of consecutive windows with one label that share a row.
        band: lowest and highest frequency that the network sees, in Hz.
    """

    classes: Sequence[str]
    thresholds: np.ndarray
    several: bool
    all_scores: bool
    merge: int
    band: tuple[float, float]

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the classes that are not left out."""
        return np.flatnonzero(np.isfinite(self.thresholds))


@dataclasses.dataclass(eq=False)
class DetectionTables:
    """Open tables below `out`; see `open_tables`.

    Attributes:
        used: number of recordings that were used.
        noted: number of these with a note.
        skipped: number of files that cannot be used.
        reasons: the first few of these, with the reasons.
    """

    out: Path
    options: TableOptions
    append: Append
    append_summary: Append
    append_skipped: Append
    append_written: Append
    choose_raven_path: Callable[[File], Path]
    used: int = 0
    noted: int = 0
    skipped: int = 0
    reasons: list[str] = dataclasses.field(default_factory=list)

    def skip(self, file: File, reason: str) -> None:
        """Lists a file that cannot be used."""
        self.skipped += 1
        self.append_skipped([(file.path, reason)])
        if len(self.reasons) < 5:
            self.reasons.append(f"{file.name} ({reason})")

    def write_recording(
        self, recording: OpenRecording, predictions: Iterable[tuple[Interval, np.ndarray]]
    ) -> None:
        """Writes the predictions for all windows of a recording as they come."""
        options, path = self.options, recording.file.path
        best = _BestScores(len(options.classes))
        labelled = (
            (window, detections.select_classes(scores, options.thresholds, options.several))
            for window, scores in self._score_windows(path, predictions, best)
        )
        self.append([])  # A recording without detections has a table with a header alone.
        with self._open_raven_table(recording.file) as select:
            for detection in detections.join_intervals(labelled, options.merge):
                label = options.classes[detection.number]
                if not options.all_scores:
                    score, silent = f"{detection.score:.6f}", int(detection.silent)
                    self.append([(path, *_format_times(detection), label, score, silent)])
                select(label, detection)
        scores = _format_scores(best.summary(options.numbers))
        self.append_summary([(path, best.windows, recording.note, *scores)])
        self.used, self.noted = self.used + 1, self.noted + bool(recording.note)

    def _score_windows(
        self, path: Path, predictions: Iterable[tuple[Interval, np.ndarray]], best: "_BestScores"
    ) -> Iterator[tuple[Interval, np.ndarray]]:
        """Yields windows and their scores; adds these to `best`, and to the table if it has all scores."""
        for window, scores in predictions:
            best.add(scores)
            if self.options.all_scores:
                times, silent = _format_times(window), int(window.silent)
                written = _format_scores(scores[self.options.numbers])
                self.append([(path, *times, silent, *written)])
            yield window, scores

    @contextlib.contextmanager
    def _open_raven_table(
        self, file: File
    ) -> Iterator[Callable[[str, detections.Detection], None]]:
        """Opens a recording's table for Raven; notes its digest at the end, also after an interruption."""
        path = self.choose_raven_path(file)
        try:
            with detections.open_raven_table(path, file.path, *self.options.band) as select:
                yield select
        finally:
            name = path.relative_to(self.out).as_posix()
            self.append_written([(name, own_files.compute_sha256(path))])


@contextlib.contextmanager
def open_tables(out: Path, options: TableOptions, own: dict[str, str]) -> Iterator[DetectionTables]:
    """Opens the tables of a prediction, after `make_room`, whose `own` tables stay in the list."""
    names = [options.classes[number] for number in options.numbers]
    columns = ["silent", *names] if options.all_scores else ["label", "score", "silent"]
    parts = (f"{name}_{part}" for name in names for part in ("max", "mean_top2"))
    append_csv = partial(files.append_csv, overwrite=True)  # `make_room` has checked
    with (
        append_csv(out / "predictions.csv", ["file", "start_s", "end_s", *columns]) as append,
        append_csv(out / "per_file.csv", ["file", "windows", "note", *parts]) as append_summary,
        append_csv(out / "skipped.csv", _SKIPPED_HEADER) as append_skipped,
        append_csv(out / own_files.MANIFEST, own_files.HEADER) as append_written,
    ):
        if own:
            append_written(own.items())
        appends = append, append_summary, append_skipped, append_written
        yield DetectionTables(out, options, *appends, choose_raven_paths(out))


def make_room(
    out: Path, tables: Iterable[Path], overwrite: bool
) -> tuple[dict[str, str], list[Path]]:
    """Removes the output of an earlier command, and keeps what somebody may have corrected.

    Returns:
        The tables in `out` that remain and are this command's own, with their digests; and the new paths of
        tables that are in the way and are not its own.

    Raises:
        UserError: if something is in the way, and `overwrite` is false.
    """
    own = own_files.list_own_files(out, RAVEN_SUFFIX)
    results = [out / "predictions.csv", out / "per_file.csv"]
    for path in (*results, out / own_files.MANIFEST, out / "skipped.csv"):
        if path.is_dir():
            raise UserError(f"{path} is a folder: choose another --out.")
    own_files.check_replaceable(out / "skipped.csv", _SKIPPED_HEADER)
    if not overwrite:
        for path in itertools.chain(results, tables):
            if path.exists():
                raise UserError(f"{path} exists: choose another --out, or give --overwrite.")
        (out / "skipped.csv").unlink(missing_ok=True)
        return own, []
    earlier = [*results, out / "skipped.csv", out / own_files.MANIFEST]
    for path in (*earlier, *(out / name for name in own)):
        path.unlink(missing_ok=True)
    return {}, [own_files.set_aside(path) for path in tables if path.exists()]


def choose_raven_paths(out: Path) -> Callable[[File], Path]:
    """Returns a function that chooses a unique path for each recording's table."""
    taken: set[str] = set()

    def choose(file: File) -> Path:
        name = Path(file.name)
        # Keep the suffix if a.wav and a.flac lie side by side.
        unique = name.with_suffix("") if str(name.with_suffix("")) not in taken else name
        taken.add(str(unique))
        return out / unique.parent / f"{unique.name}{RAVEN_SUFFIX}"

    return choose


class _BestScores:
    """The two highest scores of each class, and the number of windows."""

    def __init__(self, classes: int):
        self.windows = 0
        self._two = np.full((2, classes), -np.inf, np.float32)

    def add(self, scores: np.ndarray) -> None:
        self.windows += 1
        self._two = np.sort([*self._two, scores], axis=0)[1:]

    def summary(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the highest score of n classes and the mean of its two highest, alternating, `[2 n]`."""
        low, high = self._two[:, numbers]
        mean = high if self.windows == 1 else (low + high) / 2
        return np.stack([high, mean], axis=-1).ravel()


def _format_times(place: Interval | detections.Detection) -> tuple[str, str]:
    return f"{place.start:.3f}", f"{place.end:.3f}"


def _format_scores(scores: np.ndarray) -> Iterator[str]:
    return (f"{score:.6f}" for score in scores)
