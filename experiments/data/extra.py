"""Extra pictures to train on, such as those that `experiments.generate` makes; they are never tested on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import spectrograms
from experiments.core.checked_json import ListOf, MapOf, Number, Record, Text, read_json
from experiments.core.differences import describe_differences
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.listing import list_files
from experiments.core.words import count_noun
from experiments.data import groups, pictures
from experiments.data.dataset import Dataset, Example
from experiments.data.views import Chain

DESCRIPTION, QUALITY = "generated.json", "quality.json"
"""Name of the file in which `experiments.generate` describes a folder of pictures."""
_PREFIX = "extra_train/"  # of the names of pictures
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
    digests: Sequence[int]
    names: Sequence[str]
    shape: tuple[int, ...]
    colour: str | None

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

    The folder holds one folder per class. Validation and test stay as they are. Pictures that cannot be used,
    or have another size than those of the data set, are in `skipped`.

    Raises:
        UserError: if the folder does not exist, none of its pictures can be used, they have another kind or
            class than the data set, or the data set does not consist of pictures with classes.
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
    label_of = _list_files(folder, dataset)
    checked, skipped = _check_pictures(folder, list(label_of), dataset)
    labels = [label_of[path] for path in checked]
    if label.ndim:
        labels = np.eye(len(dataset.classes), dtype=np.float32)[labels]
    extra = _ExtraPictures(
        list(checked),
        np.asarray(labels, label.dtype),
        [digest for _, digest in checked.values()],
        [f"{_PREFIX}{path.relative_to(folder).as_posix()}" for path in checked],
        dataset.shape,
        colour,
    )
    shape = extra[0]["inputs"].shape
    if shape[-1] != dataset.shape[-1]:
        raise UserError(
            f"{extra.paths[0]} has the shape {shape}, but the pictures of {dataset.name} have "
            f"{dataset.shape}."
        )
    splits = {**dataset.splits, "train": Chain([dataset.splits["train"], extra])}
    notes = [f"{count_noun(len(extra), 'more picture')} to train on, from {folder}."]
    notes += _describe_leaks(folder, dataset)
    return dataclasses.replace(
        dataset,
        splits=splits,
        notes=[*dataset.notes, *notes],
        skipped=[*dataset.skipped, *skipped],
    )


def _list_files(folder: Path, dataset: Dataset) -> dict[Path, int]:
    """Returns the class number of each file below the class folders of `folder`."""
    labels = {}
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        name = class_folder.name
        if name.startswith("."):
            continue
        if name not in dataset.classes:
            raise UserError(
                f"--config.data.extra_train={folder}: {dataset.name} has no class "
                f"{name}{suggest_nearest(name, dataset.classes)}"
            )
        labels |= dict.fromkeys(list_files(class_folder), list(dataset.classes).index(name))
    return labels


def _check_pictures(
    folder: Path, files: Sequence[Path], dataset: Dataset
) -> tuple[dict[Path, tuple[tuple[int, int], int]], list[tuple[str, str]]]:
    """Returns the size and the digest of each file that can be used, and name and reason of the others."""
    height, width = dataset.shape[:2]  # 0 if sizes differ

    def check(path: Path):
        seen, reason = pictures.check_and_digest(path)
        if seen and height and seen[0] != (height, width):
            size = f"{seen[0][1]} by {seen[0][0]}"
            return None, f"{size}, but the pictures of {dataset.name} are {width} by {height}"
        return seen, reason

    checked, skipped = pictures.check_all(folder, files, check)
    skipped = [(f"{_PREFIX}{name}", reason) for name, reason in skipped]
    if not checked:
        why = f" ({': '.join(skipped[0])})" if skipped else ""
        raise UserError(
            f"--config.data.extra_train={folder} has no picture that can be used{why}; it should hold a "
            "folder of pictures for each class."
        )
    return checked, skipped


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
