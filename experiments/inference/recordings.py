"""Predicts the classes in recordings, window by window. Any length takes the same memory."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import detections, spectrograms
from experiments.audio.detections import RAVEN_SUFFIX, Interval
from experiments.core import files, listing
from experiments.core.console import Progress, print_result
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data.reading import File
from experiments.inference.audio_windows import (
    SOUND_SUFFIXES,
    OpenRecording,
    make_audio_settings,
    prepare_windows,
)
from experiments.inference.files import check_inputs, expand_paths, track_progress
from experiments.inference.trained import Trained

Append = Callable[[Iterable[Sequence[object]]], None]
"""Appends rows to a table."""

OUT = "predictions"
_TASKS = ("classification", "tagging")


def predict_recordings(
    trained: Trained,
    paths: Sequence[str],
    out: str | Path = OUT,
    *,
    threshold: float = 0.5,
    all_scores: bool = False,
    merge: int = 1,
    hop: float = 0.0,
    batch_size: int = 0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Writes the classes that a network detects in recordings; the options are of `experiments.predict`.

    Returns:
        The number of recordings that were used, and of files that could not be used.

    Raises:
        UserError: if a path does not exist, if tables are in `out`, or if most files cannot be used; the
            predictions for the others are written.
    """
    out = Path(out).expanduser()
    check_inputs(paths, batch_size)
    _check_arguments(trained, out, threshold, merge, hop)
    total = sum(1 for _ in expand_paths(paths, suffixes=SOUND_SUFFIXES))
    if not total:
        raise UserError(f"There is no sound file in {', '.join(map(str, paths))}.")
    _remove_earlier(out, overwrite)
    audio = make_audio_settings(trained.config.audio, hop)
    band, choose_raven_path = _find_frequency_band(audio), _choose_raven_paths(out)
    multilabel = trained.config.task == "tagging"
    skipped = noted = used = 0
    reasons: list[str] = []
    columns = ["silent", *trained.classes] if all_scores else ["label", "score", "silent"]
    parts = (f"{name}_{part}" for name in trained.classes for part in ("max", "mean_top2"))
    append_csv = partial(files.append_csv, overwrite=True)  # `_remove_earlier` has checked
    with (
        append_csv(out / "predictions.csv", ["file", "start_s", "end_s", *columns]) as append,
        append_csv(out / "per_file.csv", ["file", "windows", "note", *parts]) as append_summary,
        append_csv(out / "skipped.csv", ["file", "reason"]) as append_skipped,
        Progress(total, unit="file") as progress,
    ):

        def skip(file: File, reason: str) -> None:
            nonlocal skipped
            skipped += 1
            append_skipped([(file.path, reason)])
            if len(reasons) < 5:
                reasons.append(f"{file.name} ({reason})")

        sounds = track_progress(expand_paths(paths, suffixes=SOUND_SUFFIXES), progress)
        examples = prepare_windows(sounds, audio, trained.prepare, skip, progress.say)
        predictions = trained.predict(examples, batch_size)
        for recording, group in itertools.groupby(predictions, key=lambda item: item[0][0]):
            path = recording.file.path
            best = _BestScores(len(trained.classes))
            windows = _score_windows(group, best, append if all_scores else None)
            labelled = (
                (window, detections.select_classes(scores, threshold, multilabel))
                for window, scores in windows
            )
            append([])  # A recording without detections has a table with a header alone.
            with detections.open_raven_table(
                choose_raven_path(recording.file), path, *band
            ) as select:
                for detection in detections.join_intervals(labelled, merge):
                    label = trained.classes[detection.number]
                    if not all_scores:
                        score, silent = f"{detection.score:.6f}", int(detection.silent)
                        append([(path, *_format_times(detection), label, score, silent)])
                    select(label, detection)
            scores = _format_scores(best.summary())
            append_summary([(path, best.windows, recording.note, *scores)])
            used, noted = used + 1, noted + bool(recording.note)
        progress.update(total)
    if not used or skipped * 2 > total:
        rest = f"The predictions for the others are in {out}." if used else "Nothing was predicted."
        raise UserError(
            f"{skipped:,} of {count_noun(total, 'file')} cannot be used, such as {'; '.join(reasons)}. "
            f"{out / 'skipped.csv'} has all reasons. {rest}"
        )
    rows = [
        ("recordings", f"{used:,}"),
        ("predictions", str(out / "predictions.csv")),
        ("per file", str(out / "per_file.csv")),
        ("for Raven", str(out / f"NAME{RAVEN_SUFFIX}")),
    ]
    if noted:
        rows.append(("in part", f"{noted:,}, noted in {out / 'per_file.csv'}"))
    if skipped:
        rows.append(("skipped", f"{skipped:,}, listed in {out / 'skipped.csv'}"))
    print_result("finished", rows)
    return used, skipped


def _check_arguments(trained: Trained, out: Path, threshold: float, merge: int, hop: float) -> None:
    """Raises a UserError for the first invalid argument."""
    if trained.config.task not in _TASKS:
        raise UserError(
            f"{trained.source} is a run of {trained.config.task}, which cannot label recordings: give a run "
            f"of {' or '.join(_TASKS)}."
        )
    if out.is_file() or out.suffix == ".csv":
        raise UserError(f"--out={out}: for recordings give a folder, such as {OUT}/.")
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold={threshold}: choose 0 to 1.")
    if merge < 1:
        raise UserError(f"--merge={merge}: choose 1 or more; 1 merges nothing.")
    if hop and not 1 / trained.config.audio.sample_rate <= hop < math.inf:
        raise UserError(f"--hop={hop}: choose a number of seconds above 0.")


def _remove_earlier(out: Path, overwrite: bool) -> None:
    """Removes the output of an earlier command: its tables for Raven may be of other recordings."""
    tables = (out / "predictions.csv", out / "per_file.csv")
    earlier = [table for table in tables if table.exists()]
    if earlier and not overwrite:
        raise UserError(f"{earlier[0]} exists: choose another --out, or give --overwrite.")
    if out.is_dir() and overwrite:
        earlier += [file for file in listing.list_files(out) if file.name.endswith(RAVEN_SUFFIX)]
    # A list of skipped files alone is no prediction to protect.
    for file in (*earlier, out / "skipped.csv"):
        file.unlink(missing_ok=True)


class _BestScores:
    """The two highest scores of each class, and the number of windows."""

    def __init__(self, classes: int):
        self.windows = 0
        self._two = np.full((2, classes), -np.inf, np.float32)

    def add(self, scores: np.ndarray) -> None:
        self.windows += 1
        self._two = np.sort([*self._two, scores], axis=0)[1:]

    def summary(self) -> np.ndarray:
        """Returns the highest score of each class and the mean of its two highest, alternating, `[2 C]`."""
        low, high = self._two
        mean = high if self.windows == 1 else (low + high) / 2
        return np.stack([high, mean], axis=-1).ravel()


def _score_windows(
    predictions: Iterable[tuple[tuple[OpenRecording, Interval], np.ndarray]],
    best: _BestScores,
    append: Append | None,
) -> Iterator[tuple[Interval, np.ndarray]]:
    """Yields the windows of a recording and their scores; adds these to `best` and appends them as a row."""
    for (recording, window), scores in predictions:
        best.add(scores)
        if append:
            times, silent = _format_times(window), int(window.silent)
            append([(recording.file.path, *times, silent, *_format_scores(scores))])
        yield window, scores


def _format_times(place: Interval | detections.Detection) -> tuple[str, str]:
    return f"{place.start:.3f}", f"{place.end:.3f}"


def _format_scores(scores: np.ndarray) -> Iterator[str]:
    return (f"{score:.6f}" for score in scores)


def _find_frequency_band(audio: ConfigDict) -> tuple[float, float]:
    """Returns the lowest and the highest frequency that the network sees, in Hz."""
    rows = spectrograms.compute_frequencies(audio)
    # The lowest frequency of wavelets has a default of its own.
    low = rows[-1] if audio.picture == "wavelet" else audio.low
    return float(low), float(audio.high or audio.sample_rate / 2)


def _choose_raven_paths(out: Path) -> Callable[[File], Path]:
    """Returns a function that chooses a unique path for each recording's table."""
    taken: set[str] = set()

    def choose(file: File) -> Path:
        name = Path(file.name)
        # Keep the suffix if a.wav and a.flac lie side by side.
        unique = name.with_suffix("") if str(name.with_suffix("")) not in taken else name
        taken.add(str(unique))
        return out / unique.parent / f"{unique.name}{RAVEN_SUFFIX}"

    return choose
