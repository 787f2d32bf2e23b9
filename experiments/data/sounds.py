"""The user's recordings: their windows as spectrograms, with labels from `sound_labels`."""

import concurrent.futures
import dataclasses
import functools
import math
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import cache, recordings, songs, spectrograms
from experiments.audio.annotations import Annotation
from experiments.audio.cache import Spectrograms
from experiments.audio.matching import normalize
from experiments.audio.samples import prepare_samples
from experiments.core import digests
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data import (
    groups,
    label_choices,
    paths,
    sound_labels,
    sound_mixing,
    splits,
    views,
)
from experiments.data.dataset import Dataset, Example, Source
from experiments.data.reading import THREADS
from experiments.data.sound_labels import LabelTable, RecordingLabels
from experiments.data.sound_mixing import SoundMixer
from experiments.data.upsampling import repeat_rare_classes
from experiments.data.views import Subset

NOTHING_KNOWN: Mapping[str, str] = types.MappingProxyType({})
_LAYOUT = (
    "give --config.data.source=PATH, a folder of recordings: one folder for each class, or recordings with "
    "Raven's tables next to them or your own table (--config.audio.annotations=FILE.csv)"
)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledWindows:
    """Labelled windows of recordings, whose spectrograms are read when they are needed.

    Attributes:
        recordings: the spectrograms of each recording.
        owners: index of the recording of each window, `[N]`.
        rows: index of each window within its recording, `[N]`.
        labels: int32 `[N]`, or float32 `[N, classes]`.
    """

    recordings: Sequence[Spectrograms]
    owners: np.ndarray
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: int) -> Example:
        # The copy lets the memory-mapped file be closed at once.
        levels = np.array(self.recordings[self.owners[index]].levels[self.rows[index]])
        return {
            "inputs": levels[..., None],
            "label": self.labels[index],
            "window": np.int64(index),  # for the sound; transforms leave it out
        }

    @property
    def digests(self) -> np.ndarray:
        """Digest of the content of each window; copies of a recording have the same digests."""
        of_recordings = np.array([one.digest for one in self.recordings], np.uint64)
        return of_recordings[self.owners] + self._mix_starts()

    def _mix_starts(self) -> np.ndarray:
        """Returns a number for the start of each window, to be added to the digest of its recording."""
        places = zip(self.owners, self.rows, strict=True)
        starts = np.array([self.recordings[owner].starts[row] for owner, row in places])
        # The factor is odd, so that different starts stay different; overflow wraps around.
        return starts.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    @functools.cached_property
    def contents(self) -> np.ndarray:
        """Digest of the file and the start of each window, whatever library decodes and resamples it."""
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            of_files = list(pool.map(_digest_recording, self.recordings))
        return np.array(of_files, np.uint64)[self.owners] + self._mix_starts()

    @property
    def files(self) -> list[str]:
        """Name of the recording of each window."""
        return [self.recordings[owner].name for owner in self.owners]

    @functools.cached_property
    def names(self) -> list[str]:
        """Name of each window for messages."""
        return [
            f"{self.recordings[owner].name} @ {self.recordings[owner].starts[row]:.1f} s"
            for owner, row in zip(self.owners, self.rows, strict=True)
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledFrames(LabelledWindows):
    """Windows whose examples have a label for each column of the spectrogram, float32 `[W, classes]`.

    `labels` are those of whole windows: 1 for a class in any column, 0 in none, NaN where it is unknown.

    Attributes:
        annotations: of each recording, without those outside of it.
        classes: name of each class.
        times: middles of the columns in seconds after the start of a window, `[W]`.
        exhaustive: see `mark_moments`.
    """

    annotations: Sequence[Sequence[Annotation]]
    classes: Sequence[str]
    times: np.ndarray
    exhaustive: bool

    def __getitem__(self, index: int) -> Example:
        owner = self.owners[index]
        start = self.recordings[owner].starts[self.rows[index]]
        settings = (self.annotations[owner], self.recordings[owner].seconds, self.exhaustive)
        label = sound_labels.label_frames(start + self.times, *settings, self.classes)
        return {**super().__getitem__(index), "label": label}

    @functools.cached_property
    def contents(self) -> np.ndarray:
        """Digest of the file, the start and the annotations of each window."""
        of_annotations = [
            digests.compute_digest(repr([dataclasses.astuple(row) for row in rows]).encode())
            for rows in self.annotations
        ]
        return super().contents + np.array(of_annotations, np.uint64)[self.owners]


def load(
    config: ConfigDict, audio: ConfigDict, seed: int, known: Mapping[str, str] = NOTHING_KNOWN
) -> Dataset:
    """Returns the windows of all recordings below the folder `source`, as uint8 pictures of one channel.

    Spectrograms are computed once and kept in the data folder, under a key of the settings that they depend
    on. Silent windows are left out. Recordings keep the split that they are `known` to have.
    """
    root = _find_root(config, audio)
    files = {path.relative_to(root).as_posix(): path for path in recordings.list_recordings(root)}
    foreign = _list_foreign(root)
    if not files:
        others = f" (such as {': '.join(foreign[0])})" if foreign else ""
        raise UserError(f"There is no recording below {root} that can be read{others}; {_LAYOUT}.")
    table, by_name = _read_labels(root, list(files), config, audio)
    names = list(by_name)
    starts = None
    if audio.windows == "annotations":
        names = [name for name in names if by_name[name].annotations]
        starts = [
            _centre_windows(by_name[name].annotations or (), audio, _read_length(files[name]))
            for name in names
        ]
        if not names:
            raise UserError(
                f"--config.audio.windows=annotations: there are no annotations below {root}; leave it out."
            )
    prepared = cache.prepare_spectrograms(
        [files[name] for name in names],
        names,
        audio,
        paths.get_data_dir(config) / "spectrograms",
        starts,
        config.max_skipped,
    )
    classes = _list_chosen_classes(config) or sound_labels.list_labels(by_name)
    # A line of a table that cannot be used leaves its recording usable.
    unlabelled = {n: why for n, why in table.skipped if n in files and n not in by_name}
    lines = [row for row in table.skipped if unlabelled.get(row[0]) != row[1]]
    windows, outside, window_notes = _label_windows(prepared.usable, by_name, classes, audio)
    notes = [*table.notes, *prepared.notes, *window_notes]
    if not len(windows):
        first = [f"{name}: {reason}." for name, reason in [*table.skipped, *outside][:1]]
        raise UserError(f"{root}: none of the windows has a label. {' '.join([*first, *notes])}")
    if audio.labels in ("multi", "frames") and not _have_negatives(windows):
        raise UserError(
            f"{root}: no window has a negative label, and nothing can be learned without one. Add negative "
            "labels, or, if everything was annotated, set --config.audio.exhaustive=True."
        )
    split_of, assign_notes = _assign_splits(
        windows, classes, table.splits, config, audio, seed, known
    )
    parts, split_notes = _make_splits(windows, classes, split_of, config, seed)
    if ratio := audio.get("upsample", 0.0):
        parts["train"], repeat_notes = _repeat_rare_classes(parts["train"], ratio)
        split_notes += repeat_notes
    mixer, more_skipped, mix_notes = _make_mixer(windows, parts["train"], classes, config, audio)
    return Dataset(
        "songs" if config.variant else root.name,
        parts,
        classes,
        (*spectrograms.compute_shape(audio), 1),
        [*notes, *assign_notes, *split_notes, *mix_notes],
        [*foreign, *unlabelled.items(), *prepared.skipped, *more_skipped],
        list(split_of.items()),
        mixer,
        incomplete=[*lines, *outside],
    )


def _make_mixer(
    windows: LabelledWindows,
    train: Source,
    classes: Sequence[str],
    config: ConfigDict,
    audio: ConfigDict,
) -> tuple[SoundMixer | None, list[tuple[str, str]], list[str]]:
    """Returns what mixes the sounds of the training windows, unusable noise, and notes; None if it is off."""
    if not any(audio.get(name) for name in sound_mixing.SETTINGS):
        return None, [], []
    sound_mixing.check_settings(audio)
    cache = paths.get_data_dir(config) / "samples"
    noise, skipped, notes = [], [], []
    if audio.noise_folder:
        noise, skipped, note = sound_mixing.read_noise(audio, cache)
        notes.append(note)
    owners, names = windows.recordings, [one.name for one in windows.recordings]
    samples, unusable = prepare_samples([one.path for one in owners], names, audio, cache)
    if unusable:
        raise UserError(f"{': '.join(unusable[0])}. It was read before: start the command again.")
    places = zip(windows.owners, windows.rows, strict=True)
    starts = np.array([owners[owner].starts[row] for owner, row in places])
    mixer = SoundMixer(
        ConfigDict(audio.to_dict()),
        [one for one in samples if one is not None],
        windows.owners,
        np.rint(starts * audio.sample_rate).astype(int),
        windows.labels,
        np.unique(views.flatten(train)[2]),
        noise,
        sound_mixing.make_nothing(classes, audio),
    )
    return mixer, skipped, notes


def _list_foreign(root: Path) -> list[tuple[str, str]]:
    """Returns the name of each recording in a format that is not read, and the reason."""
    return [
        (
            path.relative_to(root).as_posix(),
            f"{path.suffix} files cannot be read: convert it to WAV or FLAC",
        )
        for path in recordings.list_recordings(root, recordings.FOREIGN_SUFFIXES)
    ]


def _digest_recording(recording: Spectrograms) -> int:
    try:
        return digests.compute_sampled_digest(recording.path)
    except OSError as error:
        raise UserError(
            f"{recording.name} cannot be read any more ({error.strerror}). Restore the file and start the "
            "same command again."
        ) from error


def _find_root(config: ConfigDict, audio: ConfigDict) -> Path:
    """Returns the folder of the recordings; writes the made-up songs if the variant asks for them."""
    if config.variant not in ("", "songs"):
        raise UserError(
            f"--config.data.variant={config.variant}: for recordings, write songs for made-up ones, or leave "
            "it out for your own."
        )
    if config.variant:
        folder = paths.get_data_dir(config) / "songs"
        match audio.labels:
            case "class":
                return songs.write_songs(folder / "classes")
            case "multi" | "frames":
                return songs.write_mixed_songs(folder / "long")
        return songs.write_day(folder / "day")
    root = paths.get_source_path(config)
    if root is None:
        raise UserError(
            f"No recordings are set; {_LAYOUT}. ':songs' after the config's name uses made-up recordings."
        )
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; {_LAYOUT}.")
    return root


def _list_chosen_classes(config: ConfigDict) -> list[str]:
    """Returns the classes of the settings in the form that labels have; none if all count."""
    return normalize(config.classes).split(",") if config.classes else []


def _read_labels(
    root: Path, names: Sequence[str], config: ConfigDict, audio: ConfigDict
) -> tuple[LabelTable, dict[str, RecordingLabels]]:
    """Returns all labels, and those of the recordings that the chosen classes need."""
    table = sound_labels.read_labels(root, names, audio)
    by_name = table.by_name
    if classes := _list_chosen_classes(config):
        by_name = sound_labels.select_classes(by_name, classes, audio)
    if not by_name:
        why = f" ({': '.join(table.skipped[0])})" if table.skipped else ""
        advice = "--config.audio.label_pattern for labels in their names"
        if label_choices.print_choices(names):
            advice += ", such as those above"
        raise UserError(
            f"None of the {len(names):,} recordings below {root} has a label{why}; {_LAYOUT}, or {advice}."
        )
    return table, by_name


def _read_length(path: Path) -> float:
    """Returns the length in seconds from the header of a recording; infinity if it is unusable."""
    try:
        return recordings.probe_recording(path).seconds
    except recordings.Unreadable:
        return math.inf


def _centre_windows(rows: Sequence[Annotation], audio: ConfigDict, end: float) -> list[float]:
    """Returns starts of windows around the middles of annotations, moved inside the recording."""
    # Resampling may shorten a recording by one sample.
    last = end - audio.seconds - 1 / audio.sample_rate
    middles = {(row.start + min(row.end, end)) / 2 for row in rows if row.start < end}
    return sorted({max(0.0, min(middle - audio.seconds / 2, last)) for middle in middles})


def _label_windows(
    usable: Sequence[Spectrograms],
    by_name: Mapping[str, RecordingLabels],
    classes: Sequence[str],
    audio: ConfigDict,
) -> tuple[LabelledWindows, list[tuple[str, str]], list[str]]:
    """Returns all windows with labels, the annotations outside of their recordings, and notes."""
    owners, rows, values, outside = [], [], [], []
    silent = unlabelled = 0
    for owner, recording in enumerate(usable):
        labels = sound_labels.label_windows(
            recording, by_name[recording.name], classes, audio, outside
        )
        for row, value in enumerate(labels):
            if recording.silent[row]:
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
        problem = "not exactly one label" if audio.labels == "class" else "no label"
        notes.append(f"{unlabelled:,} windows have {problem} and were left out.")
    dtype = np.float32 if audio.labels in ("multi", "frames") else np.int32
    fields = (usable, np.asarray(owners, int), np.asarray(rows, int), np.asarray(values, dtype))
    if audio.labels != "frames":
        return LabelledWindows(*fields), outside, notes
    inside = [sound_labels.list_inside(one, by_name[one.name]) for one in usable]
    times = spectrograms.compute_times(audio)
    return LabelledFrames(*fields, inside, classes, times, audio.exhaustive), outside, notes


def _have_negatives(windows: LabelledWindows) -> bool:
    """Returns whether anything is known to be absent; a window with a sound may have moments without."""
    if isinstance(windows, LabelledFrames):
        return windows.exhaustive or any(
            row.positive is False for rows in windows.annotations for row in rows
        )
    return bool((windows.labels == 0).any())


def _collect_labels(windows: LabelledWindows, classes: Sequence[str]) -> list[set[str]]:
    """Returns the labels of each recording's windows.

    The recording's annotations may have more: where two overlap, neither is the class of a window.
    """
    collected: list[set[str]] = [set() for _ in windows.recordings]
    if not classes:
        return collected
    owners, labels = windows.owners, windows.labels
    if labels.ndim == 2:
        examples, labels = np.nonzero(labels == 1)
        owners = owners[examples]
    for owner, label in np.unique(np.stack([owners, labels]), axis=1).T:
        collected[owner].add(classes[label])
    return collected


def _assign_splits(
    windows: LabelledWindows,
    classes: Sequence[str],
    table: Mapping[str, str],
    config: ConfigDict,
    audio: ConfigDict,
    seed: int,
    known: Mapping[str, str],
) -> tuple[dict[str, str], list[str]]:
    """Returns the split of each recording, and notes."""
    names = [recording.name for recording in windows.recordings]
    file = audio.splits or audio.annotations
    if audio.splits:
        table = groups.read_splits(Path(audio.splits).expanduser())
    if table:
        table = groups.check_splits(table, file)
        table = {normalize(name): split for name, split in table.items()}
        absent = [name for name in names if normalize(name) not in table]
        if absent:
            others = f", nor do {len(absent) - 1:,} others" if len(absent) > 1 else ""
            raise UserError(f"{file}: {absent[0]} has no split there{others}.")
        chosen = {name: table[normalize(name)] for name in names}
        return chosen, [f"The splits are those of {file}."]
    recording_groups = groups.find_groups(names, audio.group_pattern)
    has_clips = not audio.group_pattern and recording_groups != names
    # The clips of a recording count as one recording.
    labels_of: dict[str, set[str]] = {}
    owners = recording_groups if has_clips else names
    for owner, labels in zip(owners, _collect_labels(windows, classes), strict=True):
        labels_of.setdefault(owner, set()).update(labels)
    frequency = Counter(label for labels in labels_of.values() for label in labels)
    # A recording counts for its rarest label, because the others occur in more recordings.
    rarest = [
        min(labels_of[owner], key=lambda label: (frequency[label], label), default="")
        for owner in owners
    ]
    split_of, notes = groups.assign_splits(
        recording_groups,
        rarest,
        config.validation,
        config.test,
        seed,
        [known.get(name) for name in names],
    )
    counts = Counter(split_of)
    unit = "recordings, in whole groups" if audio.group_pattern else "recordings"
    assigned = ", ".join(f"{counts[split]:,} to {split}" for split in splits.NAMES if counts[split])
    if has_clips:
        clips = [one for one, name in zip(recording_groups, names, strict=True) if one != name]
        note = f"{count_noun(len(clips), 'file')} of {count_noun(len(set(clips)), 'recording')}"
        notes = [f"Clips of detections share the split of their recording: {note}.", *notes]
    return dict(zip(names, split_of, strict=True)), [f"Assigned {unit}: {assigned}.", *notes]


def _repeat_rare_classes(train: Source, ratio: float) -> tuple[Source, list[str]]:
    """Returns the training windows with repetitions (see `repeat_rare_classes`), and a note of them."""
    positions = repeat_rare_classes(np.array(views.list_labels(train)), ratio)
    if len(positions) == len(train):
        return train, []
    note = f"Windows of rare classes are repeated: {len(train):,} become {len(positions):,}."
    return Subset(train, positions), [note]


def _make_splits(
    windows: LabelledWindows,
    classes: Sequence[str],
    split_of: Mapping[str, str],
    config: ConfigDict,
    seed: int,
) -> tuple[dict[str, Source], list[str]]:
    """Returns the splits, and notes on missing classes and splits."""
    split_of_window = np.array(
        [split_of[windows.recordings[owner].name] for owner in windows.owners]
    )
    parts: dict[str, Source] = {}
    notes = []
    for split in splits.NAMES:
        indices = np.flatnonzero(split_of_window == split)
        if not len(indices):
            continue
        labels = windows.labels[indices]
        present = set(np.flatnonzero((labels == 1).any(axis=0)) if labels.ndim == 2 else labels)
        absent = [name for number, name in enumerate(classes) if number not in present]
        if absent and split == "train":
            raise UserError(
                f"The train split has no {', '.join(absent)}: add recordings, or leave the class out with "
                "--config.data.classes=A,B,..."
            )
        if absent:
            notes.append(f"{split} has no {', '.join(absent)}.")
        if config.limit:
            balance = labels if labels.ndim == 1 else np.nan_to_num(labels).argmax(axis=1)
            kept = splits.limit_stratified(balance, config.limit, seed)
            if len(kept) < len(indices):
                notes.append(
                    f"{split}: {len(kept):,} of {len(indices):,} windows (config.data.limit)."
                )
            indices = indices[kept]
        parts[split] = Subset(windows, indices)
    if "train" not in parts:
        raise UserError("No recording is left to train on: make the other splits smaller.")
    for split, substitute in (("validation", "train"), ("test", "validation")):
        if split not in parts:
            parts[split] = parts[substitute]
            notes.append(f"There is no {split} split: {split} is the {substitute} split itself.")
    return parts, notes
