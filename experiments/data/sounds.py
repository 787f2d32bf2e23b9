"""A person's recordings: windows of them, as spectrograms; `sound_labels` says what is known of them."""

import dataclasses
import functools
import math
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import cache, recordings, songs, spectrograms
from experiments.audio.annotations import Annotation
from experiments.audio.cache import Pictures
from experiments.core.errors import UserError
from experiments.data import groups, places, sound_labels
from experiments.data.dataset import Dataset, Example, Source
from experiments.data.sound_labels import Known
from experiments.data.sources import Subset
from experiments.data.splits import stratified_limit

_WAYS = (
    "give --config.data.source=PATH, a folder of recordings: one folder for each class, or recordings with "
    "Raven's tables beside them or a table of your own (--config.audio.annotations=FILE.csv)"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Windows of recordings, whose spectrograms stay in their files until they are asked for.

    Attributes:
        pictures: the spectrograms of each recording.
        owners: which recording each window is of, `[N]`.
        rows: which of its windows, `[N]`.
        labels: int32 `[N]`, or float32 `[N, classes]`.
    """

    pictures: Sequence[Pictures]
    owners: np.ndarray
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: int) -> Example:
        # A copy: the file is open for no longer than it is read.
        levels = np.array(self.pictures[self.owners[index]].pictures[self.rows[index]])
        return {"inputs": levels[..., None], "label": self.labels[index]}

    @property
    def digests(self) -> np.ndarray:
        """A number for the content of each window: copies of a recording have the same."""
        recordings = np.array([one.digest for one in self.pictures], np.uint64)
        places = [one.starts for one in self.pictures]
        starts = np.array([places[o][r] for o, r in zip(self.owners, self.rows, strict=True)])
        # Odd, so that no two starts become one; what overflows is left out.
        return recordings[self.owners] + starts.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    @functools.cached_property
    def names(self) -> list[str]:
        """What to call each window in a sentence."""
        return [
            f"{self.pictures[owner].name} @ {self.pictures[owner].starts[row]:.1f} s"
            for owner, row in zip(self.owners, self.rows, strict=True)
        ]


def load(config: ConfigDict, audio: ConfigDict, seed: int) -> Dataset:
    """Returns the windows of all recordings below a folder, as uint8 pictures of one channel.

    Spectrograms are made once and kept, by the settings that they depend on, below the data's folder.
    Windows in which nothing changes are left out.

    Args:
        config: the data part of the configuration; `source` is the folder.
        audio: the audio part.
        seed: decides which recordings are set aside.

    Raises:
        UserError: if there are no recordings, or too little is known of them.
    """
    root = _root(config, audio)
    paths = {path.relative_to(root).as_posix(): path for path in recordings.files(root)}
    if not paths:
        raise UserError(f"There is no recording below {root}; {_WAYS}.")
    labels = sound_labels.read(root, list(paths), audio)
    known = labels.known
    if config.classes:
        known = sound_labels.of_classes(known, config.classes.split(","), audio)
    if not known:
        why = f" ({': '.join(labels.skipped[0])})" if labels.skipped else ""
        raise UserError(
            f"None of the {len(paths):,} recordings below {root} has a label{why}; {_WAYS}, or "
            "--config.audio.label_pattern for labels in their names."
        )
    names = list(known)
    starts = None
    if audio.windows == "annotations":
        names = [name for name in names if known[name].annotations]
        starts = [
            _centred(known[name].annotations or (), audio, _seconds(paths[name])) for name in names
        ]
        if not names:
            raise UserError(
                f"--config.audio.windows=annotations: there are no annotations below {root}; leave it out."
            )
    folder = places.data_dir(config) / "spectrograms"
    found = cache.prepare(
        [paths[name] for name in names], names, audio, folder, starts, config.max_skipped
    )
    windows, classes, beyond, said = _windows(found.usable, known, config, audio)
    notes = [*labels.notes, *found.notes, *said]
    if not len(windows):
        first = [f"{name}: {why}." for name, why in [*labels.skipped, *beyond][:1]]
        raise UserError(f"{root}: none of the windows has a label. {' '.join([*first, *notes])}")
    if audio.labels == "multi" and not (windows.labels == 0).any():
        raise UserError(
            f"{root}: it is not known of any window what is not in it, and without that nothing can "
            "be learned. Give negative labels, or, if all there is was annotated, "
            "--config.audio.exhaustive=True."
        )
    heard = _heard(windows, classes)
    split_of, said = _splits(found.usable, heard, labels.splits, config, audio, seed)
    parts, more = _parts(windows, classes, split_of, config, seed)
    return Dataset(
        "songs" if config.variant else root.name,
        parts,
        classes,
        (*spectrograms.shape(audio), 1),
        [*notes, *said, *more],
        [*labels.skipped, *found.skipped, *beyond],
        list(split_of.items()),
    )


def _root(config: ConfigDict, audio: ConfigDict) -> pathlib.Path:
    if config.variant not in ("", "songs"):
        raise UserError(
            f"--config.data.variant={config.variant}: of recordings there is songs, which are made up; "
            "leave it out for your own."
        )
    if config.variant:
        folder = places.data_dir(config) / "songs"
        match audio.labels:
            case "class":
                return songs.write(folder / "classes")
            case "multi":
                return songs.write_long(folder / "long")
        return songs.write_day(folder / "day")
    root = places.source_path(config)
    if root is None:
        raise UserError(
            f"No recordings were given; {_WAYS}. ':songs' behind the config is a set that is made up."
        )
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; {_WAYS}.")
    return root


def _seconds(path: pathlib.Path) -> float:
    """How long a recording is by its head; of one that cannot be used, infinity."""
    try:
        return recordings.probe(path).seconds
    except recordings.Unreadable:
        return math.inf


def _centred(rows: Sequence[Annotation], audio: ConfigDict, end: float) -> list[float]:
    """Starts of windows around the middles of annotations; at the ends of a recording as near as can be."""
    # At another rate a recording may be a sample shorter.
    last = end - audio.seconds - 1 / audio.sample_rate
    middles = {(row.start + min(row.end, end)) / 2 for row in rows if row.start < end}
    return sorted({max(0.0, min(middle - audio.seconds / 2, last)) for middle in middles})


def _windows(
    pictures: Sequence[Pictures], known: Mapping[str, Known], config: ConfigDict, audio: ConfigDict
) -> tuple[Windows, list[str], list[tuple[str, str]], list[str]]:
    """All windows that can be learned from, the classes, annotations that cannot be used, and notes."""
    labels = {label for one in known.values() for label in (*one.positive, *one.negative)}
    classes = config.classes.split(",") if config.classes else sorted(labels)
    owners, rows, values, beyond = [], [], [], []
    silent = unlabelled = 0
    for owner, one in enumerate(pictures):
        for row, value in enumerate(
            sound_labels.of_windows(one, known[one.name], classes, audio, beyond)
        ):
            if one.silent[row]:
                silent += 1
            elif value is None:
                unlabelled += 1
            else:
                owners.append(owner)
                rows.append(row)
                values.append(value)
    notes = []
    if silent:
        notes.append(f"{silent:,} windows are silent and were left out.")
    if unlabelled:
        what = "not exactly one label" if audio.labels == "class" else "no label"
        notes.append(f"{unlabelled:,} windows have {what} and were left out.")
    dtype = np.float32 if audio.labels == "multi" else np.int32
    windows = Windows(
        pictures, np.asarray(owners, int), np.asarray(rows, int), np.asarray(values, dtype)
    )
    return windows, classes, beyond, notes


def _heard(windows: Windows, classes: Sequence[str]) -> list[set[str]]:
    """The labels that each recording's windows have.

    Those of its annotations may be more: of two at once none is the class of a window.
    """
    heard: list[set[str]] = [set() for _ in windows.pictures]
    if not classes:
        return heard
    owners, labels = windows.owners, windows.labels
    if labels.ndim == 2:
        examples, labels = np.nonzero(labels == 1)
        owners = owners[examples]
    for owner, label in np.unique(np.stack([owners, labels]), axis=1).T:
        heard[owner].add(classes[label])
    return heard


def _splits(
    pictures: Sequence[Pictures],
    heard: Sequence[set[str]],
    table: Mapping[str, str],
    config: ConfigDict,
    audio: ConfigDict,
    seed: int,
) -> tuple[dict[str, str], list[str]]:
    """The split of each recording, and notes."""
    names = [one.name for one in pictures]
    file = audio.splits or audio.annotations
    if audio.splits:
        table = groups.read(pathlib.Path(audio.splits).expanduser())
    if table:
        table = groups.check(table, file)
        absent = [name for name in names if name not in table]
        if absent:
            more = f", nor do {len(absent) - 1:,} others" if len(absent) > 1 else ""
            raise UserError(f"{file}: {absent[0]} has no split there{more}.")
        return {name: table[name] for name in names}, [f"The splits are those of {file}."]
    frequency = Counter(label for labels in heard for label in labels)
    # Of several labels the rarest one counts: the others are in other recordings too.
    rarest = [
        min(labels, key=lambda label: (frequency[label], label), default="") for labels in heard
    ]
    belongs = groups.groups_of(names, audio.group_pattern)
    split_of, notes = groups.deal_out(belongs, rarest, config.validation, config.test, seed)
    counts = Counter(split_of)
    what = "recordings" if not audio.group_pattern else "recordings, in whole groups"
    dealt = ", ".join(f"{counts[split]:,} to {split}" for split in groups.SPLITS if counts[split])
    return dict(zip(names, split_of, strict=True)), [f"Dealt out {what}: {dealt}.", *notes]


def _parts(
    windows: Windows,
    classes: Sequence[str],
    split_of: Mapping[str, str],
    config: ConfigDict,
    seed: int,
) -> tuple[dict[str, Source], list[str]]:
    """The splits, and notes on what they lack."""
    chosen = np.array([split_of[windows.pictures[owner].name] for owner in windows.owners])
    parts: dict[str, Source] = {}
    notes = []
    for split in groups.SPLITS:
        indices = np.flatnonzero(chosen == split)
        if not len(indices):
            continue
        labels = windows.labels[indices]
        there = set(np.flatnonzero((labels == 1).any(axis=0)) if labels.ndim == 2 else labels)
        absent = [name for number, name in enumerate(classes) if number not in there]
        if absent and split == "train":
            raise UserError(
                f"There is nothing of {', '.join(absent)} to train on: add recordings, or leave the class "
                "out with --config.data.classes=A,B,..."
            )
        if absent:
            notes.append(f"{split} has nothing of {', '.join(absent)}.")
        if config.limit:
            balance = labels if labels.ndim == 1 else np.nan_to_num(labels).argmax(axis=1)
            kept = stratified_limit(balance, config.limit, seed)
            if len(kept) < len(indices):
                notes.append(
                    f"{split}: {len(kept):,} of {len(indices):,} windows (config.data.limit)."
                )
            indices = indices[kept]
        parts[split] = Subset(windows, indices)
    if "train" not in parts:
        raise UserError("No recording is left to train on: make the other splits smaller.")
    for split, other in (("validation", "train"), ("test", "validation")):
        if split not in parts:
            parts[split] = parts[other]
            notes.append(f"There is no {split} split: {split} is the {other} split itself.")
    return parts, notes
