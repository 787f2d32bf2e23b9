"""Asks a network about recordings: windows slide over them, and what is heard in each is written down.

This is what `experiments.predict` does for a run on recordings. Into the folder `--out` go

    predictions.csv   file, start_s, end_s, label, score, silent: a row for each window and label whose score
                      reaches the threshold; where a window has one class, the most probable one alone. With
                      --all_scores: file, start_s, end_s, silent and a column for each class, a row for each
                      window.
    per_file.csv      file, windows, note, and for each class CLASS_max, its highest score, and
                      CLASS_mean_top2, the mean of the two highest
    NAME.dyn.selections.txt   a table for Raven of each recording, in folders as the recordings are
    skipped.csv       file, reason: what could not be used

`silent` is 1 where all samples are the same. Of a recording that breaks off, what is before is there, and its
`note` says so. Any length takes the same memory.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import detections, recordings, spectrograms
from experiments.audio.detections import RAVEN_SUFFIX, Interval
from experiments.core import files, listing
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError
from experiments.data.reading import File
from experiments.inference import audio_windows as listening
from experiments.inference import files as predict_files
from experiments.inference.trained import Trained

OUT = "predictions"
THRESHOLD = 0.5
TASKS = ("classification", "tagging")
_TABLES = ("predictions.csv", "per_file.csv")


def predict(
    trained: Trained,
    paths: Sequence[str],
    out: str | Path = OUT,
    *,
    threshold: float = THRESHOLD,
    all_scores: bool = False,
    merge: int = 1,
    hop: float = 0.0,
    batch_size: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[int, int]:
    """Writes what a network hears in recordings.

    Args:
        trained: of a run on recordings.
        paths: files, and folders whose sound files are meant.
        out: the folder where the tables go.
        threshold: the least score that is written.
        all_scores: whether instead `predictions.csv` has all scores of all windows.
        merge: so many consecutive windows with one label become one row at most, of their mean score.
        hop: seconds from one window to the next; 0 for the run's.
        batch_size: 0 for the run's.
        overwrite: whether what an earlier call wrote to `out` may be replaced.
        quiet: whether nothing is printed.

    Returns:
        How many recordings were heard, and how many files could not be used.

    Raises:
        UserError: if a path is not there, if tables are in `out`, or if most files could not be used; what
            was heard in the others is written.
    """
    out = Path(out).expanduser()
    _check(trained, paths, out, threshold, merge, hop, batch_size)
    total = sum(1 for _ in _given(paths))
    if not total:
        raise UserError(f"There is no sound file in {', '.join(map(str, paths))}.")
    _clear(out, overwrite)
    audio, several = listening.settings(trained, hop), trained.config.task == "tagging"
    low, high = _band(audio)
    skipped = noted = heard = 0
    reasons: list[str] = []
    with (
        _table(out / "predictions.csv", _header(trained, all_scores)) as append,
        _table(out / "per_file.csv", _summary_header(trained)) as append_summary,
        _table(out / "skipped.csv", ["file", "reason"]) as skip,
        Progress(total, quiet=quiet, unit="file") as shown,
    ):

        def unusable(file: File, reason: str) -> None:
            nonlocal skipped
            skipped += 1
            skip([(file.path, reason)])
            if len(reasons) < 5:
                reasons.append(f"{file.name} ({reason})")

        def counted() -> Iterator[File]:
            for number, file in enumerate(_given(paths)):
                shown.update(number)
                yield file

        found = listening.examples(trained, counted(), audio, unusable, shown.say)
        answers = trained.answers(found, batch_size)
        place = _places(out)
        for of, group in itertools.groupby(answers, key=lambda answer: answer[0][0]):
            best = _Best(len(trained.classes))
            said = _said(group, threshold, several, best, append if all_scores else None)
            append([])  # where nothing is found there is a table without rows
            with detections.open_raven_table(place(of.file), of.file.path, low, high) as select:
                for one in detections.join_intervals(said, merge):
                    label = trained.classes[one.number]
                    if not all_scores:
                        score = f"{one.score:.6f}"
                        append([(of.file.path, *_seconds(one), label, score, int(one.silent))])
                    select(label, one)
            append_summary([(of.file.path, best.windows, of.note, *_shares(best.summary()))])
            heard, noted = heard + 1, noted + bool(of.note)
        shown.update(total)
    if not heard or skipped * 2 > total:
        said = f"what was heard in the others is in {out}" if heard else "there is nothing to write"
        raise UserError(
            f"{skipped:,} of {total:,} files cannot be used, such as {'; '.join(reasons)}. "
            f"{out / 'skipped.csv'} says why of each; {said}."
        )
    table = [
        ("recordings", f"{heard:,}"),
        ("predictions", str(out / "predictions.csv")),
        ("of each file", str(out / "per_file.csv")),
        ("for Raven", str(out / f"NAME{RAVEN_SUFFIX}")),
    ]
    if noted:
        table.append(("in part", f"{noted:,}, noted in {out / 'per_file.csv'}"))
    if skipped:
        table.append(("skipped", f"{skipped:,}, listed in {out / 'skipped.csv'}"))
    print_result("finished", table, quiet=quiet)
    return heard, skipped


class _Best:
    """The two highest scores of each class, and the number of windows."""

    def __init__(self, classes: int):
        self.windows = 0
        self._two = np.full((2, classes), -np.inf, np.float32)

    def add(self, scores: np.ndarray) -> None:
        self.windows += 1
        low, high = self._two
        self._two = np.stack([np.maximum(low, np.minimum(high, scores)), np.maximum(high, scores)])

    def summary(self) -> np.ndarray:
        """The highest score of each class and the mean of the two highest, one after another, `[2 C]`."""
        low, high = self._two
        mean = high if self.windows == 1 else (low + high) / 2
        return np.stack([high, mean], axis=-1).ravel()


def _said(
    answers: Iterable[Any],
    threshold: float,
    several: bool,
    best: _Best,
    append: Callable[[Iterable[Sequence[object]]], None] | None,
) -> Iterator[tuple[Interval, dict[int, float]]]:
    """What is said of each window of a recording; its scores go to `best`, and as they are to `append`."""
    for (of, window), scores in answers:
        best.add(scores)
        if append:
            append([(of.file.path, *_seconds(window), int(window.silent), *_shares(scores))])
        yield window, detections.select_classes(scores, threshold, several)


def _header(trained: Trained, all_scores: bool) -> list[str]:
    places = ["file", "start_s", "end_s"]
    return (
        [*places, "silent", *trained.classes]
        if all_scores
        else [*places, "label", "score", "silent"]
    )


def _summary_header(trained: Trained) -> list[str]:
    parts = (f"{name}_{part}" for name in trained.classes for part in ("max", "mean_top2"))
    return ["file", "windows", "note", *parts]


def _seconds(place: Interval | detections.Detection) -> tuple[str, str]:
    return f"{place.start:.3f}", f"{place.end:.3f}"


def _shares(scores: np.ndarray) -> Iterator[str]:
    return (f"{score:.6f}" for score in scores)


def _table(path: Path, header: Sequence[str]) -> Any:
    return files.append_csv(path, header, overwrite=True)  # `_clear` has said whether that may be


def _given(paths: Sequence[str]) -> Iterator[File]:
    return predict_files.given(paths, suffixes=recordings.SUFFIXES)


def _band(audio: ConfigDict) -> tuple[float, float]:
    """From where to where in Hz the network hears."""
    rows = spectrograms.compute_frequencies(audio)
    # A wavelet's lowest frequency has a default of its own.
    low = rows[-1] if audio.picture == "wavelet" else audio.low
    return float(low), float(audio.high or audio.sample_rate / 2)


def _places(out: Path) -> Callable[[File], Path]:
    """A function that gives each recording's table a name that no other has."""
    taken: set[str] = set()

    def place(file: File) -> Path:
        name = Path(file.name)
        # The whole name: a.wav and a.flac may lie side by side.
        own = name.with_suffix("") if str(name.with_suffix("")) not in taken else name
        taken.add(str(own))
        return out / own.parent / f"{own.name}{RAVEN_SUFFIX}"

    return place


def _check(
    trained: Trained,
    paths: Sequence[str],
    out: Path,
    threshold: float,
    merge: int,
    hop: float,
    batch_size: int,
) -> None:
    """Returns if what was asked for makes sense."""
    if trained.config.task not in TASKS:
        raise UserError(
            f"A run of the task {trained.config.task} says of no recording what is in it: give one of "
            f"{' or '.join(TASKS)}."
        )
    if not paths:
        raise UserError("What is to be predicted? Give recordings or folders behind the run.")
    if out.is_file() or out.suffix == ".csv":
        raise UserError(f"--out={out}: for recordings give a folder, such as {OUT}/.")
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold={threshold}: choose 0 to 1.")
    if merge < 1:
        raise UserError(f"--merge={merge}: choose 1 or more; 1 joins no windows.")
    if hop and not 1 / trained.config.audio.sample_rate <= hop < math.inf:
        raise UserError(f"--hop={hop}: choose a number of seconds above 0.")
    if batch_size < 0:
        raise UserError(f"--batch_size={batch_size}: choose 1 or more, or 0 for the run's.")


def _clear(out: Path, overwrite: bool) -> None:
    """Removes what an earlier command wrote: its tables for Raven may be of other recordings."""
    there = [out / name for name in _TABLES if (out / name).exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} is there already: choose another --out, or give --overwrite.")
    if out.is_dir() and overwrite:
        there += [file for file in listing.list_files(out) if file.name.endswith(RAVEN_SUFFIX)]
    # A list of what could not be used is no prediction: the next command may follow at once.
    for file in (*there, out / "skipped.csv"):
        file.unlink(missing_ok=True)
