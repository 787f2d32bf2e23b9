"""What is known of recordings, and of their windows.

Labels come from the first of these that there is: a CSV (`--config.audio.annotations`), the recordings'
names (`--config.audio.label_pattern`), Raven's tables beside them, their folders (`root/<class>/**`).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import annotations
from experiments.audio.annotations import Annotation
from experiments.audio.cache import Pictures
from experiments.audio.targets import targets
from experiments.core.errors import UserError, suggest_nearest


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a recording.

    Attributes:
        positive: the labels of what is in it.
        negative: the labels of what is not.
        annotations: where; None where labels are the whole recording's.
    """

    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    annotations: Sequence[Annotation] | None = None


@dataclasses.dataclass(frozen=True)
class Labels:
    """What is known of all recordings.

    Attributes:
        known: of each that can be used.
        skipped: what cannot be used, recordings or lines of tables, and why.
        notes: sentences for the person.
        splits: where a table says to which split a recording belongs.
    """

    known: dict[str, Known]
    skipped: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(root: pathlib.Path, names: Sequence[str], audio: ConfigDict) -> Labels:
    """What is known of each recording.

    Args:
        root: the folder.
        names: the recordings in it.
        audio: the audio part of the configuration.

    Raises:
        UserError: if a CSV or a pattern is none.
    """
    if audio.labels == "none":
        return Labels({name: Known() for name in names})
    if audio.label_pattern and not audio.annotations:  # Who gives it does not mean the tables.
        return _whole(names, audio)
    found = annotations.read(root, names, audio.annotations, audio.label_column)
    if not found.files and not audio.annotations:
        return _whole(names, audio)
    by_file: dict[str, list[Annotation]] = {name: [] for name in found.files}
    for row in found.rows:
        by_file[row.file].append(row)
    known = {}
    for name, rows in by_file.items():
        positive, negative = (
            tuple(sorted({row.label for row in rows if row.positive is sign}))
            for sign in (True, False)
        )
        known[name] = Known(positive, negative, rows)
    notes = []
    if absent := len(names) - len(known):
        notes.append(f"{absent:,} recordings have no annotations and were left out.")
    return Labels(known, found.skipped, notes, found.splits)


def _whole(names: Sequence[str], audio: ConfigDict) -> Labels:
    """Labels of whole recordings, by their folders or their names."""
    known, skipped = {}, []
    why = "its name does not match --config.audio.label_pattern"
    for name in names:
        text = annotations.label_text(name, audio.label_pattern)
        if text is None:
            skipped.append((name, why if audio.label_pattern else "it is in no folder of a class"))
        elif audio.labels == "class":  # where what is no bird is a class as any other
            known[name] = Known((text,))
        else:
            known[name] = Known(*annotations.labels_of(text, audio.no_class))
    return Labels(known, skipped)


def of_classes(
    known: Mapping[str, Known], classes: Sequence[str], audio: ConfigDict
) -> dict[str, Known]:
    """The recordings in which one of some classes is, or, of several at once, is known not to be."""
    all_of_them = sorted(
        {label for one in known.values() for label in (*one.positive, *one.negative)}
    )
    for name in classes:
        if name not in all_of_them:
            raise UserError(
                f"--config.data.classes: there is no {name}{suggest_nearest(name, all_of_them)}"
            )
    kept = {}
    for name, one in known.items():
        positive, negative = (
            tuple(label for label in labels if label in classes)
            for labels in (one.positive, one.negative)
        )
        nothing = not one.positive and not one.negative
        # A folder of another class, or annotations of all there is, say that these are not there.
        others = one.positive if one.annotations is None else audio.exhaustive
        if positive or negative or nothing or (others and audio.labels == "multi"):
            kept[name] = dataclasses.replace(one, positive=positive, negative=negative)
    return kept


def of_windows(
    one: Pictures,
    known: Known,
    classes: Sequence[str],
    audio: ConfigDict,
    beyond: list[tuple[str, str]],
) -> list[np.ndarray | int | None]:
    """What each window of a recording is to be recognised as; None where it is to be left out.

    `beyond` gets the annotations that lie behind the end of the recording.
    """
    number = len(one.starts)
    if audio.labels == "none":
        return [0] * number
    if known.annotations is None:
        rows = np.tile(_row(known, classes), (number, 1))
    else:
        inside, outside = annotations.within(known.annotations, {one.name: one.seconds})
        beyond += outside
        rules = (audio.min_overlap, audio.min_fraction, audio.exhaustive)
        rows = targets(one.starts, one.ends, inside, classes, *rules)
    if audio.labels == "multi":
        return [None if np.isnan(row).all() else row for row in rows]
    return [int(row.argmax()) if (row == 1).sum() == 1 else None for row in np.nan_to_num(rows)]


def _row(known: Known, classes: Sequence[str]) -> np.ndarray:
    """The label of a whole recording, float32 `[classes]`.

    A folder of a class says that the others are not there; one of what is not there says no more.
    """
    only_negative = known.negative and not known.positive
    row = np.full(len(classes), np.nan if only_negative else 0, np.float32)
    for value, labels in ((0, known.negative), (1, known.positive)):
        row[[classes.index(label) for label in labels]] = value
    return row
