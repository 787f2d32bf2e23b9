"""Data sets: one file per data set, and one function that loads any of them."""

import dataclasses
import pathlib
import types

import numpy as np

from experiments.core.errors import UserError, nearest
from experiments.data import duplicates, folds
from experiments.data.dataset import Dataset, Example, Source
from experiments.data.sources import Relabelled, flatten

__all__ = ["NAMES", "Dataset", "Example", "Source", "check_sizes", "check_skipped", "load"]

NAMES = ("digits", "tiny_imagenet", "voc2012", "ucr", "folder", "mask_folder", "tfds", "audio")


def load(config, seed: int, audio=None) -> Dataset:
    """Loads a data set by its name, preparing it first where that has not been done yet.

    Args:
        config: the data part of the configuration: `name` (one of `NAMES`), `source` (where the
            data is, '' where it can be found or downloaded), `dir` (where prepared data is kept,
            '' for the usual place), `variant` (which set of the UCR archive or the TFDS
            catalogue), `validation` and `test` (shares of train to set aside where the data set
            has no such split of its own), `limit` (the most examples a split may keep, 0 for all),
            `fold` and `folds` (which fold of how many is the test split, all splits pooled; -1 for
            the data set's own splits), `classes` (names, '' for all).
        seed: decides which examples are set aside.
        audio: the audio part of the configuration, for recordings.

    Returns:
        The data set with its splits `train`, `validation` and `test`.

    Raises:
        UserError: if the name is unknown, or the data is missing or unusable.
    """
    if config.name == "audio":
        from experiments.data import sounds

        dataset = sounds.load(config, audio, seed)
    else:
        dataset = _reader(config.name).load(config, seed)
    if config.get("fold", -1) >= 0:
        everything = folds.pool(dataset)
        # One assignment for all runs, whatever their seed: they are compared fold by fold.
        assignment, notes = folds.assign(everything.labels, config.folds, seed=0)
        dataset = folds.fold_dataset(dataset, everything, assignment, config.fold, config, seed)
        dataset = dataclasses.replace(dataset, notes=[*dataset.notes, *notes])
    if config.get("classes") and config.name != "audio":
        dataset = _only(dataset, config.classes.split(","))
    notes = [*dataset.notes, *duplicates.notes(dataset.splits)]
    return dataclasses.replace(dataset, notes=notes)


def _reader(name: str) -> types.ModuleType:
    """The module that reads a data set."""
    # Imported where they are needed: one data set should not wait for another's libraries.
    match name:
        case "digits":
            from experiments.data import digits as reader
        case "tiny_imagenet":
            from experiments.data import tiny_imagenet as reader
        case "voc2012":
            from experiments.data import voc2012 as reader
        case "ucr":
            from experiments.data import ucr as reader
        case "folder":
            from experiments.data import folder as reader
        case "mask_folder":
            from experiments.data import mask_folder as reader
        case "tfds":
            from experiments.data import tfds_catalogue as reader
        case unknown:
            raise UserError(
                f"--config.data.name: there is no data set {unknown}"
                f"{nearest(str(unknown).lower(), NAMES)}"
            )
    return reader


def check_skipped(dataset: Dataset, config, listed: pathlib.Path | None = None) -> None:
    """Returns if no larger share of the data set had to be skipped than was allowed.

    Args:
        dataset: the data set.
        config: the data part of the configuration; `max_skipped` is the share.
        listed: the file that names what was skipped.

    Raises:
        UserError: if it is more.
    """
    bases = {id(base): base for split in dataset.splits.values() for base in flatten(split)[0]}
    skipped = len(dataset.skipped)
    found = skipped + sum(len(base) for base in bases.values())
    if skipped > config.max_skipped * found:
        where = f"{listed} names them" if listed else f"such as {': '.join(dataset.skipped[0])}"
        raise UserError(
            f"{dataset.name}: {skipped:,} of {found:,} files or series cannot be used ({where}), more than "
            f"the share of {config.max_skipped:g} that may be skipped. Mend or remove them, or allow more "
            "with --config.data.max_skipped=SHARE."
        )


def check_sizes(dataset: Dataset, image_size: int) -> None:
    """Returns if examples can be put together in batches: all have one size, or are given one.

    Raises:
        UserError: if they cannot.
    """
    if not all(dataset.shape) and not image_size:
        raise UserError(
            f"{dataset.name}: its pictures differ in size; choose one for all with "
            "--config.image_size=PIXELS."
        )


def _only(dataset: Dataset, names: list[str]) -> Dataset:
    """The examples of some classes alone, numbered anew in the order of their names here.

    Every example is read once, for its label.
    """
    for name in names:
        if name not in dataset.classes:
            raise UserError(
                f"--config.data.classes: there is no {name}{nearest(name, dataset.classes)}"
            )
    numbers = {list(dataset.classes).index(name): new for new, name in enumerate(names)}
    parts = {}
    for split, source in dataset.splits.items():
        labels = np.array([int(source[i]["label"]) for i in range(len(source))])
        kept = np.flatnonzero(np.isin(labels, list(numbers)))
        if not len(kept):
            raise UserError(
                f"{dataset.name}: the {split} split has no example of {', '.join(names)}."
            )
        parts[split] = Relabelled(source, kept, numbers)
    note = f"Only the classes {', '.join(names)}."
    return dataclasses.replace(dataset, splits=parts, classes=names, notes=[*dataset.notes, note])
