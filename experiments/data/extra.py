"""Extra pictures to train on, such as those that `experiments.generate` makes; they are never tested on."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import spectrograms
from experiments.core import digests
from experiments.core.checked_json import ListOf, MapOf, Number, Record, Text, read_json
from experiments.core.differences import describe_differences
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.listing import list_files
from experiments.core.words import count_noun
from experiments.data import groups, pictures
from experiments.data.dataset import Dataset, Example
from experiments.data.views import Chain

DESCRIPTION = "generated.json"
"""Name of the file in which `experiments.generate` describes a folder of pictures."""
_COUNT = Number(0, 2**53, whole=True)
_FORM = Record(
    {
        "run": Text(),
        "counts": MapOf(_COUNT),
        "per_class": _COUNT,
        "shape": ListOf(Number(1, 8192, whole=True), shortest=3, longest=3),
        "data": Record({"name": Text()}, needed=("name",)),
        "audio": Record({"colour": Text()}),  # empty of pictures that are no spectrograms
    }
)


def read_description(folder: Path, *needed: str) -> dict[str, Any]:
    """Reads how `experiments.generate` made the pictures of a folder, with the fields `needed`.

    Raises:
        UserError: if the file is missing or cannot be read.
    """
    file, advice = folder / DESCRIPTION, "Use a folder that experiments.generate has written."
    try:
        return read_json(file, Record(_FORM.fields, needed=needed), advice)
    except FileNotFoundError as error:
        raise UserError(f"{file} cannot be read: it is missing. {advice}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class _ExtraPictures:
    """Pictures that are read when they are needed; coloured spectrograms become levels again."""

    paths: Sequence[Path]
    labels: np.ndarray
    names: Sequence[str]
    shape: tuple[int, ...]
    colour: str | None

    @functools.cached_property
    def digests(self) -> list[int]:
        """Digest of the content of each file."""
        return [digests.compute_file_digest(path) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        grey = self.colour in (None, "grey") and self.shape[-1] == 1
        picture = pictures.read_picture(
            self.paths[index], self.names[index], channels=1 if grey else 3
        )
        if self.colour not in (None, "grey"):
            picture = spectrograms.remove_colours(picture, self.colour)[..., None]
        return {"inputs": picture, "label": self.labels[index]}


def add_pictures(dataset: Dataset, config: ConfigDict, audio: ConfigDict | None = None) -> Dataset:
    """Adds the pictures of the folder `config.extra_train` to the train split.

    The folder holds one folder per class. Validation and test stay as they are.

    Raises:
        UserError: if the folder does not exist, its pictures have another kind, size or class than the data
            set, or the data set does not consist of pictures with classes.
    """
    label = np.asarray(dataset.splits["train"][0]["label"])
    if len(dataset.shape) != 3 or label.ndim > 1 or not dataset.classes:
        raise UserError(
            f"--config.data.extra_train needs pictures or recordings that have classes, and {dataset.name} "
            "has none; leave it out."
        )
    folder = Path(config.extra_train).expanduser()
    if not folder.is_dir():
        raise UserError(f"--config.data.extra_train={folder} is not a folder.")
    colour = _read_colour(folder, audio) if config.name == "audio" else None
    paths, labels = _list_pictures(folder, dataset)
    names = [f"extra_train/{path.relative_to(folder).as_posix()}" for path in paths]
    if label.ndim:
        labels = np.eye(len(dataset.classes), dtype=np.float32)[labels]
    extra = _ExtraPictures(paths, np.asarray(labels, label.dtype), names, dataset.shape, colour)
    shape = extra[0]["inputs"].shape
    if all(dataset.shape) and shape != tuple(dataset.shape):
        raise UserError(
            f"{paths[0]} has the shape {shape}, but the pictures of {dataset.name} have {dataset.shape}."
        )
    splits = {**dataset.splits, "train": Chain([dataset.splits["train"], extra])}
    notes = [f"{count_noun(len(extra), 'more picture')} to train on, from {folder}."]
    notes += _describe_leaks(folder, dataset)
    return dataclasses.replace(dataset, splits=splits, notes=[*dataset.notes, *notes])


def _list_pictures(folder: Path, dataset: Dataset) -> tuple[list[Path], list[int]]:
    """Returns the PNG files below the class folders of `folder`, and their class numbers."""
    paths, labels = [], []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        name = class_folder.name
        if name.startswith("."):
            continue
        if name not in dataset.classes:
            raise UserError(
                f"--config.data.extra_train={folder}: {dataset.name} has no class "
                f"{name}{suggest_nearest(name, dataset.classes)}"
            )
        members = [path for path in list_files(class_folder) if path.suffix.lower() == ".png"]
        paths += members
        labels += [list(dataset.classes).index(name)] * len(members)
    if not paths:
        raise UserError(
            f"--config.data.extra_train={folder} has no pictures; it should hold a folder of PNG files for "
            "each class."
        )
    return paths, labels


def _read_colour(folder: Path, audio: ConfigDict) -> str:
    """Returns the colours of generated spectrograms.

    Raises:
        UserError: if they were made with other settings than the data set's.
    """
    made_with = read_description(folder, "audio")["audio"]
    both = map(spectrograms.list_settings, (made_with, audio))
    differences = describe_differences(*both, names=spectrograms.SETTINGS)
    if differences:
        raise UserError(
            f"--config.data.extra_train={folder}: its spectrograms were made with other settings of "
            f"--config.audio: {differences}."
        )
    return made_with["colour"]


def _describe_leaks(folder: Path, dataset: Dataset) -> list[str]:
    """Returns a warning for each split whose recordings the generator of the pictures was trained on."""
    try:
        run = read_description(folder, "run")["run"]
        file = Path(run).expanduser() / "splits.csv"
        split_in_run = groups.read_splits(file) if dataset.assignment else {}
    except (OSError, UserError):
        return []  # The generator's training recordings are unknown.
    notes = []
    for split in ("validation", "test"):
        names = {name for name, own_split in dataset.assignment if own_split == split}
        if leaked := sum(split_in_run.get(name) == "train" for name in names):
            notes.append(
                f"The generator of these pictures was trained on {leaked:,} of the {len(names):,} recordings "
                f"of {split}: scores on {split} are too good. Use --config.audio.splits={file}."
            )
    return notes
