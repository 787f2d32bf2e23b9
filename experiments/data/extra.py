"""More pictures to train on, such as those that `experiments.generate` makes; never to test on."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.audio import spectrograms
from experiments.core.errors import UserError, nearest
from experiments.core.listing import files_below
from experiments.data import groups, pictures
from experiments.data.dataset import Dataset, Example
from experiments.data.sources import Chain

# What a folder of generated pictures says of itself.
DESCRIPTION = "generated.json"


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    """Pictures that stay in their files; spectrograms lose their colours."""

    paths: Sequence[pathlib.Path]
    labels: np.ndarray
    names: Sequence[str]
    shape: tuple[int, ...]
    colour: str | None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        grey = self.colour in (None, "grey") and self.shape[-1] == 1
        picture = pictures.read(self.paths[index], self.names[index], channels=1 if grey else 3)
        if self.colour not in (None, "grey"):
            picture = spectrograms.levels_of(picture, self.colour)[..., None]
        return {"inputs": picture, "label": self.labels[index]}


def add(dataset: Dataset, config: ConfigDict) -> Dataset:
    """The data set with more examples to train on: the pictures of the folder `config.data.extra_train`.

    The folder holds a folder for each class. Validation and test stay what they are.

    Args:
        dataset: what to add to.
        config: the experiment.

    Raises:
        UserError: if there is no such folder, or its pictures are of another kind or size, or of a class that
            the data set does not have, or the data set is none of pictures with classes.
    """
    label = np.asarray(dataset.splits["train"][0]["label"])
    if len(dataset.shape) != 3 or label.ndim > 1 or not dataset.classes:
        raise UserError(
            f"--config.data.extra_train is for pictures and recordings that have classes; {dataset.name} is "
            "something else. Leave it out."
        )
    folder = pathlib.Path(config.data.extra_train).expanduser()
    if not folder.is_dir():
        raise UserError(f"--config.data.extra_train={folder} is no folder.")
    colour = _colour(folder, config)
    paths, labels = [], []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inner.name.startswith("."):
            continue
        if inner.name not in dataset.classes:
            raise UserError(
                f"--config.data.extra_train={folder}: {dataset.name} has no class "
                f"{inner.name}{nearest(inner.name, dataset.classes)}"
            )
        found = [path for path in files_below(inner) if path.suffix.lower() == ".png"]
        paths += found
        labels += [list(dataset.classes).index(inner.name)] * len(found)
    if not paths:
        raise UserError(
            f"--config.data.extra_train={folder} has no pictures; it should hold a folder of PNG files for "
            "each class."
        )
    names = [str(path.relative_to(folder)) for path in paths]
    if label.ndim:
        labels = np.eye(len(dataset.classes), dtype=np.float32)[labels]
    extra = _Pictures(paths, np.asarray(labels, label.dtype), names, dataset.shape, colour)
    shape = extra[0]["inputs"].shape
    if all(dataset.shape) and shape != tuple(dataset.shape):
        raise UserError(
            f"{paths[0]} is of the shape {shape}, and the pictures of {dataset.name} are of {dataset.shape}."
        )
    parts = {**dataset.splits, "train": Chain([dataset.splits["train"], extra])}
    notes = [f"{len(extra):,} more pictures to train on, of {folder}.", *_seen(folder, dataset)]
    return dataclasses.replace(dataset, splits=parts, notes=[*dataset.notes, *notes])


def _colour(folder: pathlib.Path, config: ConfigDict) -> str | None:
    """How the pictures are coloured, where they are spectrograms.

    Raises:
        UserError: if they were made with other settings than the data set's.
    """
    if config.data.name != "audio":
        return None
    file = folder / DESCRIPTION
    try:
        audio = json.loads(file.read_text(encoding="utf-8"))["audio"]
        differing = [
            f"{name} was {audio[name]} and is now {config.audio[name]}"
            for name in spectrograms.SETTINGS
            if audio[name] != config.audio[name]
        ]
        colour = audio["colour"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} does not say how the pictures were made ({error}): give a folder that "
            "experiments.generate has written."
        ) from error
    if differing:
        raise UserError(
            f"--config.data.extra_train={folder}: its spectrograms were made with other settings of "
            f"--config.audio: {'; '.join(differing)}."
        )
    return colour


def _seen(folder: pathlib.Path, dataset: Dataset) -> list[str]:
    """Says which recordings are tested on here that the pictures were made after."""
    try:
        run = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["run"]
        file = pathlib.Path(run).expanduser() / "splits.csv"
        theirs = groups.read(file) if dataset.assignment else {}
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return []  # nothing is known of what they were made after
    notes = []
    for split in ("validation", "test"):
        mine = {name for name, part in dataset.assignment if part == split}
        if seen := sum(theirs.get(name) == "train" for name in mine):
            notes.append(
                f"{seen:,} of the {len(mine):,} recordings of {split} are among those that these pictures "
                f"were made after: scores on {split} are no fair ones. Give --config.audio.splits={file}."
            )
    return notes
