"""Cross-validation: a data set's examples pooled over its splits, and dealt out to stratified folds.

everything = pool_splits(dataset)
assignment, notes = assign_folds(everything.labels, folds=10, seed=0)
for fold in range(10):
    dataset_of_fold = make_fold_dataset(dataset, everything, assignment, fold, config.data, seed=0)
"""

import csv
import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.model_selection import StratifiedKFold

from experiments.core.errors import UserError
from experiments.core.files import replace_file
from experiments.data import splits
from experiments.data.dataset import Dataset, Source
from experiments.data.views import Chain, Subset

COLUMNS = ["example", "split", "label", "fold"]


@dataclasses.dataclass(frozen=True, eq=False)
class PooledSplits(splits.Pool):
    """All the examples of a data set, once each.

    Attributes:
        source: the examples.
        labels: the label of each, `[N]`.
        origins: the split that each was in.
    """

    origins: Sequence[str]


def pool_splits(dataset: Dataset) -> PooledSplits:
    """Pools the splits of a data set; every example is read once, for its label.

    The order is that of the files and does not depend on what was set aside for validation: first all
    that `train` was taken from, then the rest.
    """
    found: dict[int, tuple[Source, dict[int, str]]] = {}
    for split in ("train", "validation", "test"):
        source, positions = _unwrapped(dataset.splits[split])
        _, origins = found.setdefault(id(source), (source, {}))
        for position in positions:  # validation may be train itself
            origins.setdefault(int(position), split)
    views = [Subset(source, np.array(sorted(origins))) for source, origins in found.values()]
    everything = Chain(views)
    return PooledSplits(
        everything,
        np.array([everything[i]["label"] for i in range(len(everything))], np.int32),
        [split for _, origins in found.values() for _, split in sorted(origins.items())],
    )


def assign_folds(labels: np.ndarray, folds: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Deals examples out to folds, so that each has every class in the same numbers, give or take one.

    The folds themselves differ by at most one example, too.

    Args:
        labels: `[N]` class numbers.
        folds: how many folds.
        seed: decides which examples meet.

    Returns:
        The number of each example's fold, `[N]`, from 0, and notes on what was unusual.

    Raises:
        UserError: if there are fewer than two folds, or more than the largest class has examples.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if folds < 2 or folds > counts.max(initial=0):
        raise UserError(
            f"{len(labels)} examples cannot be dealt out to {folds} folds: choose 2 or more, and at most "
            f"{counts.max(initial=0)}, the size of the largest class."
        )
    dealer = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    assignment = np.empty(len(labels), np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about small classes: see the notes
        for fold, (_, members) in enumerate(dealer.split(labels, labels)):
            assignment[members] = fold
    notes = []
    if small := int(np.sum(counts < folds)):
        notes.append(
            f"{small} of {classes.size} classes have fewer than {folds} examples: not every fold has them."
        )
    if lonely := int(np.sum(counts == 1)):
        notes.append(
            f"{lonely} of {classes.size} classes have one example, which is tested without training on any."
        )
    return assignment, notes


def make_fold_dataset(
    dataset: Dataset, everything: PooledSplits, assignment: np.ndarray, fold: int, config, seed: int
) -> Dataset:
    """The data set in which one fold is the test split and the others are there to train on.

    Train splits differ by one example between folds where the folds do, and so may
    `ceil(len(train) / batch_size)`: steps that are to be the same for all folds follow the largest.

    Args:
        dataset: the data set as it was loaded.
        everything: its pool.
        assignment: the number of each example's fold, `[N]`.
        fold: which one is tested.
        config: the data part of the configuration: `validation` is the share of the other folds to set
            aside (0: validation is the train split itself), `limit` the most examples a split may keep.
        seed: decides what is set aside.

    Raises:
        UserError: if there is no such fold, or too few examples to set some aside.
    """
    folds = int(np.max(assignment)) + 1
    tested = np.flatnonzero(assignment == fold)
    if not len(tested):
        raise UserError(f"There is no fold {fold}: the folds are numbered from 0 to {folds - 1}.")
    rest = np.flatnonzero(assignment != fold)
    train, test = (
        splits.Pool(Subset(everything.source, indices), everything.labels[indices])
        for indices in (rest, tested)
    )
    parts, remarks = splits.make_splits(dataset.name, config, seed, train=train, test=test)
    note = (
        f"Test is fold {fold} of {folds}, numbered from 0: {len(tested):,} of the {len(assignment):,} "
        "examples of all splits together. Train is the other folds."
    )
    # What was said of validation when the data was loaded may be said again.
    notes = list(dict.fromkeys([*dataset.notes, note, *remarks]))
    return dataclasses.replace(dataset, splits=parts, notes=notes)


def write_folds(
    path: str | os.PathLike,
    everything: PooledSplits,
    assignment: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Writes which fold each example is in, `folds.csv`, whole or not at all.

    Args:
        path: the file; one row for each example, in the order of the pool.
        everything: the examples.
        assignment: the number of each one's fold, `[N]`.
        classes: the name of each label.
    """
    rows = zip(_rows(everything, classes), assignment.tolist(), strict=True)
    with (
        replace_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows([*row, fold] for row, fold in rows)


def read_folds(
    path: str | os.PathLike, everything: PooledSplits, classes: Sequence[str]
) -> np.ndarray:
    """Reads what `write_folds` has written, and checks that the examples are still the same.

    Args:
        path: the file.
        everything: the examples, as they are now.
        classes: the name of each label.

    Returns:
        The number of each example's fold, `[N]`.

    Raises:
        UserError: if the file cannot be read, or is about other examples.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if header != COLUMNS:
            raise ValueError(f"its first line is not {','.join(COLUMNS)}")
        told = [(example, label) for example, _, label, _ in rows]
        assignment = np.array([int(row[-1]) for row in rows], np.int32)
        if set(assignment.tolist()) != set(range(len(set(assignment.tolist())))):
            raise ValueError("its folds are not numbered from 0 without a gap")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be used ({error}). Delete it, and the folds are dealt out anew."
        ) from error
    # Not the split: what is set aside for validation may have changed, and does not matter here.
    known = [(str(example), label) for example, _, label in _rows(everything, classes)]
    if told != known:
        line = next((i for i, (a, b) in enumerate(zip(told, known, strict=False)) if a != b), None)
        what = f"it has {len(told):,} examples and the data {len(known):,}"
        if line is not None:
            what = (
                f"line {line + 2} has the label {told[line][1]!r} and the data {known[line][1]!r}"
            )
        raise UserError(
            f"{path} is about other data: {what}. Give the data that it was written for, or delete it to "
            "deal the folds out anew."
        )
    return assignment


def _rows(everything: PooledSplits, classes: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Number, split and class name of each example."""
    for number, (split, label) in enumerate(
        zip(everything.origins, everything.labels, strict=True)
    ):
        yield number, split, str(classes[label])


def _unwrapped(source: Source) -> tuple[Source, np.ndarray]:
    """What a view is a view of, and the positions that it shows there."""
    if not isinstance(source, Subset):
        return source, np.arange(len(source))
    source, positions = source.source, np.asarray(source.indices)
    inner, places = _unwrapped(source)
    return inner, places[positions]
