"""Tables of what was detected in recordings, written as it is found, and the place where they go."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.audio import detection_formats, detections
from experiments.audio.activity import Activity, average_scores
from experiments.audio.detection_formats import Origin, Select, Selection
from experiments.audio.detections import (
    EDITABLE,
    LABEL_SUFFIX,
    NAMES,
    RAVEN_SUFFIX,
    Interval,
)
from experiments.core import files, own_files
from experiments.core.errors import UserError
from experiments.data.reading import File
from experiments.figures.activity import draw_activity
from experiments.inference.audio_windows import OpenRecording

Append = Callable[[Iterable[Sequence[object]]], None]
"""Appends rows to a table."""

_SKIPPED_HEADER = ("file", "reason")
RAVEN_LIST = "predictions.raven.list.txt"
_COMBINED = {
    "raven": detection_formats.open_combined_raven_table,
    "kaleidoscope": detection_formats.open_kaleidoscope_table,
    "birdnet": detection_formats.open_birdnet_table,
}
GROUPS = ("hours", "stations")
"""Names of the tables and figures of mean scores."""
_ORIGIN = ("run", "version", "window_s", "hop_s", "threshold")
# The tables that people correct. They are replaced only as long as nobody has.
_CORRECTED = (RAVEN_SUFFIX, LABEL_SUFFIX, *EDITABLE)


@dataclasses.dataclass(frozen=True, eq=False)
class TableOptions:
    """The contents of the tables.

    Attributes:
        classes: C names.
        thresholds: the lowest score of each that is written, `[C]`; infinity leaves a class out.
        several: whether a window may have several classes.
        all_scores: whether to write all scores of all windows instead.
        merge: the largest number of consecutive windows with one label that share a row.
        origin: how detections are made.
        formats: of `detection_formats.FORMATS`; () for predictions.csv and a Raven table for each recording.
    """

    classes: Sequence[str]
    thresholds: np.ndarray
    several: bool
    all_scores: bool
    merge: int
    origin: Origin
    formats: Sequence[str] = ()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The ends of the names of each recording's own tables."""
        chosen = self.formats or ("raven",)
        both = {"raven": RAVEN_SUFFIX, "audacity": LABEL_SUFFIX}
        return tuple(suffix for name, suffix in both.items() if name in chosen)

    @property
    def common(self) -> tuple[str, ...]:
        """The formats of the tables over all recordings."""
        return tuple(name for name in NAMES if name in (self.formats or ("csv",)))

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
    stack: contextlib.ExitStack
    append_summary: Append
    append_skipped: Append
    append_written: Append
    choose_stem: Callable[[File], Path]
    appends: list[Append] = dataclasses.field(default_factory=list)
    selects: list[Select] = dataclasses.field(default_factory=list)
    lists: list[Append] = dataclasses.field(default_factory=list)
    activity: Activity | None = None
    seconds: float = 0.0
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
        if not self.used:
            self._open_common_tables()
        best = _BestScores(len(options.classes))
        labelled = (
            (window, detections.select_classes(scores, options.thresholds, options.several))
            for window, scores in self._score_windows(recording.file, predictions, best)
        )
        with self._open_own_tables(recording.file) as own_selects:
            for detection in detections.join_intervals(labelled, options.merge):
                label = options.classes[detection.number]
                threshold = options.thresholds[detection.number]
                if not options.all_scores:
                    cells = (label, detection.score, detection.silent)
                    self._append((path, detection.start, detection.end, *cells), threshold)
                for select in own_selects:
                    select(label, detection)
                for select in self.selects:
                    select(Selection(path, self.seconds, label, threshold, detection))
        scores = _format_scores(best.summary(options.numbers))
        self.append_summary([(path, best.windows, recording.note, *scores)])
        for append in self.lists:
            append([[path.absolute()]])
        self.seconds += recording.seconds
        self.used, self.noted = self.used + 1, self.noted + bool(recording.note)

    def _open_common_tables(self) -> None:
        """Opens the tables over all recordings; before the first of these there is nothing to write."""
        out, options, enter = self.out, self.options, self.stack.enter_context
        columns: dict[str, type] = {"file": str, "start_s": float, "end_s": float}
        if options.all_scores:
            names = [options.classes[number] for number in options.numbers]
            columns |= {"silent": bool, **dict.fromkeys(names, float)}
        else:
            columns |= {"label": str, "score": float, "silent": bool}
        for name in options.common:
            path = out / NAMES[name]
            if name in _COMBINED:
                self.selects.append(enter(_COMBINED[name](path, options.origin)))
            else:
                self.appends.append(enter(_open_rows(path, columns)))
            if path.name in EDITABLE:
                self.stack.callback(self.note_written, path)
        if "raven" in options.common:
            self.lists.append(enter(_open_list(out / RAVEN_LIST)))

    def _append(self, row: Sequence[object], threshold: float = math.nan) -> None:
        """Appends a row to predictions.csv and to predictions.parquet, if they are written."""
        for append in self.appends:
            append([(*row, *self.options.origin.make_cells(threshold))])

    def _score_windows(
        self, file: File, predictions: Iterable[tuple[Interval, np.ndarray]], best: "_BestScores"
    ) -> Iterator[tuple[Interval, np.ndarray]]:
        """Yields windows and their scores; adds these to `best`, and to the table if it has all scores."""
        for window, scores in predictions:
            best.add(scores)
            if self.activity is not None:
                self.activity.add(file.name, window.start, scores)
            if self.options.all_scores:
                written = map(float, scores[self.options.numbers])
                self._append((file.path, window.start, window.end, window.silent, *written))
            yield window, scores

    @contextlib.contextmanager
    def _open_own_tables(
        self, file: File
    ) -> Iterator[Sequence[Callable[[str, detections.Detection], None]]]:
        """Opens a recording's own tables; notes their digests at the end, also after an interruption."""
        stem, selects = self.choose_stem(file), []
        with contextlib.ExitStack() as stack:
            for suffix in self.options.suffixes:
                path = stem.with_name(stem.name + suffix)
                stack.callback(self.note_written, path)
                if suffix == RAVEN_SUFFIX:
                    band = self.options.origin.band
                    opened = detections.open_raven_table(path, file.path, *band)
                else:
                    opened = detection_formats.open_label_track(path)
                selects.append(stack.enter_context(opened))
            yield selects

    def note_written(self, path: Path) -> None:
        """Notes a table that somebody may correct, and its digest."""
        name = path.relative_to(self.out).as_posix()
        self.append_written([(name, own_files.compute_sha256(path))])


@contextlib.contextmanager
def open_tables(out: Path, options: TableOptions, own: dict[str, str]) -> Iterator[DetectionTables]:
    """Opens the tables of a prediction, after `make_room`, whose `own` tables stay in the list."""
    names = [options.classes[number] for number in options.numbers]
    parts = (f"{name}_{part}" for name in names for part in ("max", "mean_top2"))
    append_csv = partial(files.append_csv, overwrite=True)  # `make_room` has checked
    scores = ["file", "windows", "note", *parts]
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        tables = DetectionTables(
            out,
            options,
            stack,
            enter(append_csv(out / "per_file.csv", scores, encoding=files.FOR_SPREADSHEETS)),
            enter(append_csv(out / "skipped.csv", _SKIPPED_HEADER)),
            enter(append_csv(out / own_files.MANIFEST, own_files.HEADER)),
            choose_stems(out),
            activity=Activity(len(options.classes)),
        )
        if own:
            tables.append_written(own.items())
        yield tables


@contextlib.contextmanager
def _open_rows(path: Path, columns: Mapping[str, type]) -> Iterator[Append]:
    """Opens predictions.csv or predictions.parquet, which has the columns of the origin as well.

    The CSV has rounded numbers and no such columns: scripts know it as it is.
    """
    if path.suffix == ".parquet":
        own = dict(zip(_ORIGIN, (str, str, float, float, float), strict=True))
        with detection_formats.open_parquet(path, {**columns, **own}) as append:
            yield append
        return
    digits = {"start_s": 3, "end_s": 3}
    formats = [
        f".{digits.get(name, 6)}f" if kind is float else "d" if kind is bool else ""
        for name, kind in columns.items()
    ]

    options = {"overwrite": True, "encoding": files.FOR_SPREADSHEETS}
    with files.append_csv(path, list(columns), **options) as append_csv:
        append_csv([])

        def append(rows: Iterable[Sequence[object]]) -> None:
            append_csv(
                [
                    format(cell, form) if form else cell
                    for cell, form in zip(row, formats, strict=False)
                ]
                for row in rows
            )

        yield append


@contextlib.contextmanager
def _open_list(path: Path) -> Iterator[Append]:
    """Opens a list of recordings, a path a line, in the order in which Raven opens them."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:

        def append(rows: Iterable[Sequence[object]]) -> None:
            file.writelines(f"{row[0]}\n" for row in rows)
            file.flush()

        yield append


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
    own = own_files.list_own_files(out, _CORRECTED)
    corrected = [out / name for name in EDITABLE]
    others = [out / name for name in (NAMES["parquet"], RAVEN_LIST, "per_file.csv")]
    drawn = [out / f"{kind}.{suffix}" for kind in GROUPS for suffix in ("csv", "png")]
    for path in (*corrected, *others, *drawn, out / own_files.MANIFEST, out / "skipped.csv"):
        if path.is_dir():
            raise UserError(f"{path} is a folder: choose another --out.")
    own_files.check_replaceable(out / "skipped.csv", _SKIPPED_HEADER)
    if not overwrite:
        for path in itertools.chain(corrected, others, tables, drawn):
            if path.exists():
                raise UserError(f"{path} exists: choose another --out, or give --overwrite.")
        (out / "skipped.csv").unlink(missing_ok=True)
        return own, []
    earlier = [*others, *drawn, out / "skipped.csv", out / own_files.MANIFEST]
    for path in (*earlier, *(out / name for name in own)):
        path.unlink(missing_ok=True)
    tables = itertools.chain(corrected, tables)
    return {}, [own_files.set_aside(path) for path in tables if path.exists()]


def draw_groups(out: Path, activity: Activity, options: TableOptions) -> list[Path]:
    """Writes the mean scores by hour and by station as tables and figures, where there are several.

    Returns:
        The figures.
    """
    groups = {
        "hours": (activity.hours, [*range(24)] if activity.hours else []),
        "stations": (activity.stations, sorted(activity.stations)),
    }
    classes, drawn = [options.classes[number] for number in options.numbers], []
    for kind, (sums, keys) in groups.items():
        if len(keys) < 2:
            continue
        means, counts = average_scores(sums, keys, activity.classes)
        means = means[:, options.numbers]
        rows = zip(keys, counts, means, strict=True)
        files.write_csv(
            out / f"{kind}.csv",
            [kind.removesuffix("s"), "windows", *classes],
            (
                [key, int(count), *(_format_scores(mean) if count else [])]
                for key, count, mean in rows
            ),
            files.FOR_SPREADSHEETS,
        )
        path = out / f"{kind}.png"
        draw_activity(means, [str(key) for key in keys], classes, kind.removesuffix("s"), path)
        drawn.append(path)
    return drawn


def plan_tables(out: Path, options: TableOptions, recordings: Iterable[File]) -> Iterator[Path]:
    """Yields the paths of each recording's own tables."""
    for stem in map(choose_stems(out), recordings):
        for suffix in options.suffixes:
            yield stem.with_name(stem.name + suffix)


def choose_stems(out: Path) -> Callable[[File], Path]:
    """Returns a function that chooses a unique path for each recording's tables, without their suffix."""
    taken: set[str] = set()

    def choose(file: File) -> Path:
        name = Path(file.name)
        # Keep the suffix if a.wav and a.flac lie side by side.
        unique = name.with_suffix("") if str(name.with_suffix("")) not in taken else name
        taken.add(str(unique))
        return out / unique

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


def _format_scores(scores: np.ndarray) -> Iterator[str]:
    return (f"{score:.6f}" for score in scores)
