"""Data sets: one file per data set, and the two functions that load any of them.

`load` reads a data set. `load_for_training` also checks it and lists in the run's folder what it skipped.
"""

import dataclasses
import importlib
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.core import files
from experiments.core.errors import UserError, suggest_nearest
from experiments.data import duplicates, folds, known_splits
from experiments.data.dataset import Dataset, Example, Source
from experiments.data.fingerprint import Entry
from experiments.data.views import Relabelled, flatten

__all__ = ["NAMES", "Dataset", "Example", "Source", "load", "load_for_training"]

NAMES = (
    *("digits", "tiny_imagenet", "voc2012", "ucr", "folder", "mask_folder", "tfds", "audio"),
    *("voc2012_instances", "mask_folder_instances", "coco_folder"),
)


def load_for_training(
    config: ConfigDict,
    seed: int,
    *,
    audio: ConfigDict | None = None,
    image_size: int = 0,
    workdir: Path | None = None,
    known: Sequence[Entry] = (),
) -> Dataset:
    """Loads a data set, adds the extra training pictures and checks that batches can be made of it.

    Args:
        config, seed, audio: as for `load`; the data section has in addition `extra_train` (a folder of more
            pictures to train on, '' for none) and `max_skipped` (the share of files that may be unusable).
        image_size: side in pixels to which pictures are resized; 0 keeps their size.
        workdir: the folder of the run, which gets `skipped.csv`; None writes nothing, for all processes but
            process 0.
        known: the files that the run has had so far, which stay in their splits.
    """
    dataset = _load_splits(config, seed, audio, known)
    if config.get("extra_train"):
        from experiments.data import extra

        dataset = extra.add_pictures(dataset, config, audio)
    dataset = _describe_copies(dataset)
    rows = [*dataset.skipped, *dataset.incomplete]
    listed = None if workdir is None else files.write_skipped(workdir, rows)
    check_skipped(dataset, config.max_skipped, listed)
    check_sizes(dataset, image_size)
    return dataset


def load(
    config: ConfigDict,
    seed: int,
    audio: ConfigDict | None = None,
    known: Sequence[Entry] = (),
) -> Dataset:
    """Loads a data set by its name and prepares it first if necessary.

    Args:
        config: the data section of the configuration: `name` (one of `NAMES`), `source` (where the data
            is; '' to find or download it), `dir` (where prepared data is kept; '' for the default),
            `variant` (name of the set in the UCR archive or the TFDS catalogue), `validation` and `test`
            (shares of train to set aside if the data set has no such split), `limit` (maximum number of
            examples per split; 0 for all), `fold` and `folds` (index of the test fold and number of folds
            when all splits are pooled; -1 keeps the data set's own splits), `classes` (names; '' for all).
        seed: decides which examples are set aside.
        audio: the audio section of the configuration, for recordings.
        known: the files of a run, which stay in their splits; () for new splits.

    Returns:
        The data set with the splits `train`, `validation` and `test`.

    Raises:
        UserError: if the name is unknown, or the data is missing or unusable.
    """
    return _describe_copies(_load_splits(config, seed, audio, known))


def _load_splits(
    config: ConfigDict, seed: int, audio: ConfigDict | None, known: Sequence[Entry]
) -> Dataset:
    """Returns what `load` does, without notes on copies."""
    reader = _import_reader(config.name)
    if config.name == "audio":  # Here new recordings join the split of their group.
        dataset = reader.load(config, audio, seed, known_splits.choose_split(known))
    else:
        dataset = reader.load(config, seed)
        _check_single_labels(dataset, config)
    if config.get("fold", -1) >= 0:
        pool = folds.pool_splits(dataset)
        # The folds are the same for every seed, because runs are compared fold by fold.
        assignment, notes = folds.assign_folds(pool.labels, config.folds, seed=0)
        dataset = folds.make_fold_dataset(dataset, pool, assignment, config.fold, config, seed)
        dataset = dataclasses.replace(dataset, notes=[*dataset.notes, *notes])
    if config.name != "audio":
        if config.get("classes"):
            dataset = _select_classes(dataset, config.classes.split(","))
        dataset = known_splits.keep_splits(dataset, known)
    return dataset


def _describe_copies(dataset: Dataset) -> Dataset:
    """Adds notes on content that is in two splits, or has two labels."""
    notes = [*dataset.notes, *duplicates.describe_duplicates(dataset.splits)]
    notes += duplicates.describe_contradictions(dataset.splits)
    return dataclasses.replace(dataset, notes=notes)


def check_skipped(dataset: Dataset, max_skipped: float, listed: Path | None = None) -> None:
    """Raises a UserError, which names the list `listed`, if more than a share of the files were skipped."""
    bases = {id(base): base for split in dataset.splits.values() for base in flatten(split)[0]}
    skipped = len(dataset.skipped)
    total = skipped + sum(len(base) for base in bases.values())
    if skipped > max_skipped * total:
        where = f"{listed} lists them" if listed else f"for example {': '.join(dataset.skipped[0])}"
        raise UserError(
            f"{dataset.name}: {skipped:,} of {total:,} files or series cannot be used ({where}), more than "
            f"the allowed share of {max_skipped:g}. Repair or remove them, or allow more with "
            "--config.data.max_skipped=SHARE."
        )


def check_sizes(dataset: Dataset, image_size: int) -> None:
    """Raises a UserError if pictures differ in size and are not resized to one size."""
    if not all(dataset.shape) and not image_size:
        raise UserError(
            f"{dataset.name}: its pictures differ in size; choose one size for all of them with "
            "--config.image_size=PIXELS."
        )


def _import_reader(name: str) -> types.ModuleType:
    """Imports the module that reads a data set, so that no data set waits for another one's libraries.

    Its `load(config, seed)` takes the arguments of `load`, and raises a UserError for files that are missing
    or unusable.
    """
    if name not in NAMES:
        raise UserError(
            f"--config.data.name: there is no data set {name}"
            f"{suggest_nearest(str(name).lower(), NAMES)}"
        )
    module = {"tfds": "tfds_catalogue", "audio": "sounds"}.get(name, name)
    return importlib.import_module(f"experiments.data.{module}")


def _check_single_labels(dataset: Dataset, config: ConfigDict) -> None:
    """Raises a UserError if a setting needs one label for each example, and examples have several."""
    wanted = {"fold": config.get("fold", -1) >= 0, "classes": bool(config.get("classes"))}
    for name in (name for name, is_set in wanted.items() if is_set):
        if np.ndim(dataset.splits["train"][0]["label"]):
            raise UserError(
                f"--config.data.{name}: the examples of {dataset.name} have more than one label: "
                "leave it out."
            )


def _select_classes(dataset: Dataset, names: list[str]) -> Dataset:
    """Keeps the examples of some classes, renumbered in the order of `names`.

    Reads every example once for its label.
    """
    for name in names:
        if name not in dataset.classes:
            raise UserError(
                f"--config.data.classes: there is no {name}{suggest_nearest(name, dataset.classes)}"
            )
    numbers = {list(dataset.classes).index(name): new for new, name in enumerate(names)}
    splits = {}
    for split, source in dataset.splits.items():
        labels = np.array([int(source[i]["label"]) for i in range(len(source))])
        kept = np.flatnonzero(np.isin(labels, list(numbers)))
        if not len(kept):
            raise UserError(
                f"{dataset.name}: the {split} split has no example of {', '.join(names)}."
            )
        splits[split] = Relabelled(source, kept, numbers)
    note = f"Only the classes {', '.join(names)}."
    return dataclasses.replace(dataset, splits=splits, classes=names, notes=[*dataset.notes, note])
