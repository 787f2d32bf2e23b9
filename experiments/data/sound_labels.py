"""Labels of recordings and of their windows.

Labels come from the first of these that exists: tables (`--config.audio.annotations`), the recordings' names
(`--config.audio.label_pattern`), Raven's tables next to them, their folders (`root/<class>/**`). With tables
and a pattern, the pattern labels the recordings that no table names.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import annotations, spectrograms
from experiments.audio.annotations import Annotation
from experiments.audio.cache import Spectrograms
from experiments.audio.targets import compute_targets, mark_moments
from experiments.core.errors import UserError, suggest_nearest
from experiments.data import label_choices


@dataclasses.dataclass(frozen=True)
class RecordingLabels:
    """Labels of one recording.

    Attributes:
        positive: the labels that occur in it.
        negative: the labels that are known not to occur in it.
        annotations: the intervals of the labels; None if they hold for the whole recording.
    """

    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    annotations: Sequence[Annotation] | None = None


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Labels of all recordings.

    Attributes:
        by_name: the labels of each usable recording.
        skipped: name and reason for each unusable recording or line of a table.
        notes: sentences for the start of the run.
        splits: the split of each recording, if a table has one.
    """

    by_name: dict[str, RecordingLabels]
    skipped: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_labels(root: Path, names: Sequence[str], audio: ConfigDict) -> LabelTable:
    """Reads the labels of the recordings below `root` whose paths there are `names`."""
    if audio.labels == "none":
        return LabelTable({name: RecordingLabels() for name in names})
    if audio.label_pattern and not audio.annotations:  # The pattern takes precedence over tables.
        return _label_whole_recordings(names, audio)
    table = annotations.read_annotations(root, names, audio.annotations, audio.label_column)
    if not table.files and not audio.annotations:
        if table.skipped:
            raise UserError(
                f"{root}: none of the tables next to the recordings can be used, so no label is known. "
                f"{': '.join(table.skipped[0])}."
            )
        return _label_whole_recordings(names, audio)
    rows_by_name: dict[str, list[Annotation]] = {name: [] for name in table.files}
    for row in table.rows:
        rows_by_name[row.file].append(row)
    by_name = {}
    for name, rows in rows_by_name.items():
        positive, negative = (
            tuple(sorted({row.label for row in rows if row.positive is sign}))
            for sign in (True, False)
        )
        by_name[name] = RecordingLabels(positive, negative, rows)
    skipped, notes = list(table.skipped), []
    if audio.label_pattern:
        others = _label_whole_recordings([name for name in names if name not in by_name], audio)
        by_name |= others.by_name
        skipped += others.skipped
    elif absent := len(names) - len(by_name):
        notes.append(f"{absent:,} recordings have no annotations and were left out.")
    return LabelTable(by_name, skipped, notes, table.splits)


def _label_whole_recordings(names: Sequence[str], audio: ConfigDict) -> LabelTable:
    """Labels whole recordings by their folders or names."""
    try:
        annotations.compile_pattern(audio.label_pattern, "label_pattern")
    except UserError as error:  # For example `?`, to see what there is.
        if not label_choices.print_choices(names):
            raise
        if audio.label_pattern == "?":
            raise UserError(
                "Choose one of the patterns listed above, and give its flag, with the quotes, instead of "
                "--config.audio.label_pattern=?"
            ) from error
        raise UserError(f"{error} Some that fit the names are listed above.") from error
    by_name, skipped = {}, []
    reason = "it is not in a class folder"
    if audio.label_pattern:
        reason = "its name does not match --config.audio.label_pattern"
    for name in names:
        text = annotations.extract_label(name, audio.label_pattern)
        if text is None:
            skipped.append((name, reason))
        elif audio.labels == "class":  # Here noise is a class like any other.
            by_name[name] = RecordingLabels((text,))
        else:
            by_name[name] = RecordingLabels(*annotations.parse_labels(text, audio.no_class))
    return LabelTable(by_name, skipped)


def list_labels(by_name: Mapping[str, RecordingLabels]) -> list[str]:
    """Returns the labels that occur or are known not to occur in any recording, sorted."""
    return sorted(
        {label for labels in by_name.values() for label in (*labels.positive, *labels.negative)}
    )


def select_classes(
    by_name: Mapping[str, RecordingLabels], classes: Sequence[str], audio: ConfigDict
) -> dict[str, RecordingLabels]:
    """Keeps the recordings with one of the classes, or, in multi-label tasks, known not to have one."""
    known = list_labels(by_name)
    for name in classes:
        if name not in known:
            raise UserError(
                f"--config.data.classes: there is no {name}{suggest_nearest(name, known)}"
            )
    kept = {}
    for name, labels in by_name.items():
        positive, negative = (
            tuple(label for label in signed if label in classes)
            for signed in (labels.positive, labels.negative)
        )
        unlabelled = not labels.positive and not labels.negative
        # The folder of another class, or exhaustive annotations, imply that these classes do not occur.
        implied = labels.positive if labels.annotations is None else audio.exhaustive
        if positive or negative or unlabelled or (implied and audio.labels in ("multi", "frames")):
            kept[name] = dataclasses.replace(labels, positive=positive, negative=negative)
    return kept


def label_windows(
    recording: Spectrograms,
    labels: RecordingLabels,
    classes: Sequence[str],
    audio: ConfigDict,
    skipped: list[tuple[str, str]],
) -> list[np.ndarray | int | None]:
    """Returns the label of each window of a recording; None for a window to leave out.

    Appends the annotations that begin after the end of the recording to `skipped`.
    """
    number = len(recording.starts)
    if audio.labels == "none":
        return [0] * number
    if audio.labels == "frames":
        skipped += _clip(recording, labels)[1]
        return _label_whole_windows(recording, labels, classes, audio)
    if labels.annotations is None:
        rows = np.tile(_encode_recording(labels, classes), (number, 1))
    else:
        inside, outside = _clip(recording, labels)
        skipped += outside
        rules = (audio.min_overlap, audio.min_fraction, audio.exhaustive)
        rows = compute_targets(recording.starts, recording.ends, inside, classes, *rules)
    if audio.labels == "multi":
        return [None if np.isnan(row).all() else row for row in rows]
    return [int(row.argmax()) if (row == 1).sum() == 1 else None for row in np.nan_to_num(rows)]


def label_frames(
    times: np.ndarray,
    rows: Sequence[Annotation],
    seconds: float,
    exhaustive: bool,
    classes: Sequence[str],
) -> np.ndarray:
    """Returns the label of each moment of a recording, float32 `[n, C]`, NaN after its end."""
    labels = mark_moments(times, rows, classes, exhaustive)
    labels[times >= seconds] = np.nan
    return labels


def list_inside(recording: Spectrograms, labels: RecordingLabels) -> list[Annotation]:
    """Returns the annotations of a recording, cut off at its end.

    Raises:
        UserError: if the recording's labels have no times.
    """
    return _clip(recording, labels)[0]


def _clip(
    recording: Spectrograms, labels: RecordingLabels
) -> tuple[list[Annotation], list[tuple[str, str]]]:
    """Returns the annotations in a recording, and name and reason of those after its end."""
    if labels.annotations is None:
        raise UserError(
            f"{recording.name} has a label without times, from its folder or name: frames need tables with "
            "a begin and an end for each sound, beside the recordings or in --config.audio.annotations."
        )
    return annotations.clip_annotations(labels.annotations, {recording.name: recording.seconds})


def _label_whole_windows(
    recording: Spectrograms, labels: RecordingLabels, classes: Sequence[str], audio: ConfigDict
) -> list[np.ndarray | None]:
    """Returns for each window 1 where a class is in it, 0 where not, NaN where unknown; None if all are."""
    inside, times = list_inside(recording, labels), spectrograms.compute_times(audio)
    settings = (inside, recording.seconds, audio.exhaustive, classes)
    rows = []
    for start in recording.starts:
        frames = label_frames(start + times, *settings)
        row = np.where((frames == 1).any(axis=0), np.float32(1), np.float32(np.nan))
        row[np.isnan(row) & (frames == 0).any(axis=0)] = 0
        rows.append(None if np.isnan(row).all() else row)
    return rows


def _encode_recording(labels: RecordingLabels, classes: Sequence[str]) -> np.ndarray:
    """Returns the label of a whole recording, float32 `[classes]`: 1 present, 0 absent, NaN unknown.

    A positive label implies that the other classes are absent; a negative one implies nothing about them.
    """
    only_negative = labels.negative and not labels.positive
    row = np.full(len(classes), np.nan if only_negative else 0, np.float32)
    for value, signed in ((0, labels.negative), (1, labels.positive)):
        row[[classes.index(label) for label in signed]] = value
    return row
