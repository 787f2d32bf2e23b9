"""Cross-validation: pools the examples of all splits of a data set and assigns them to stratified folds.

pool = pool_splits(dataset)
assignment, notes = assign_folds(pool.labels, folds=10, seed=0)
for fold in range(10):
    fold_dataset = make_fold_dataset(dataset, pool, assignment, fold, config.data, seed=0)
"""

import csv
import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict
from sklearn.model_selection import StratifiedKFold

from experiments.core.errors import UserError
from experiments.core.files import read_csv, write_csv
from experiments.core.words import agree
from experiments.data import splits
from experiments.data.dataset import Dataset, Source
from experiments.data.views import Chain, Subset

COLUMNS = ["example", "split", "label", "fold"]


@dataclasses.dataclass(frozen=True, eq=False)
class PooledSplits(splits.Pool):
    """All examples of a data set, once each.

    Attributes:
        source: the examples.
        labels: the label of each, `[N]`.
        origins: the split that each came from.
    """

    origins: Sequence[str]


def pool_splits(dataset: Dataset) -> PooledSplits:
    """Pools the splits of a data set; reads every example once for its label.

    The order is that of the files and does not depend on the validation split: first all examples of the
    source that `train` was taken from, then the rest.
    """
    origins_by_source: dict[int, tuple[Source, dict[int, str]]] = {}
    for split in splits.NAMES:
        source, positions = _unwrap_subsets(dataset.splits[split])
        _, origins = origins_by_source.setdefault(id(source), (source, {}))
        for position in positions:  # Validation may be train itself.
            origins.setdefault(int(position), split)
    pooled = Chain(
        [
            Subset(source, np.array(sorted(origins)))
            for source, origins in origins_by_source.values()
        ]
    )
    return PooledSplits(
        pooled,
        np.array([pooled[i]["label"] for i in range(len(pooled))], np.int32),
        [
            split
            for _, origins in origins_by_source.values()
            for _, split in sorted(origins.items())
        ],
    )


def assign_folds(labels: np.ndarray, folds: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Assigns examples to folds, so that the folds' numbers of examples of a class differ by at most one.

    The sizes of the folds differ by at most one, too.

    Returns:
        The fold of each example, `[N]`, from 0, and notes on anything unusual.

    Raises:
        UserError: if there are fewer than two folds, or more than the largest class has examples.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if folds < 2 or folds > counts.max(initial=0):
        raise UserError(
            f"{len(labels)} examples cannot be divided into {folds} folds: choose 2 or more, and at most "
            f"{counts.max(initial=0)}, the size of the largest class."
        )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    assignment = np.empty(len(labels), np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # The notes mention small classes.
        for fold, (_, members) in enumerate(splitter.split(labels, labels)):
            assignment[members] = fold
    notes = []
    if small := int(np.sum(counts < folds)):
        notes.append(
            f"{small} of {classes.size} classes {agree(small, 'has', 'have')} fewer than {folds} "
            "examples and "
            f"{agree(small, 'is', 'are')} missing from some folds."
        )
    if single := int(np.sum(counts == 1)):
        notes.append(
            f"{single} of {classes.size} classes {agree(single, 'has', 'have')} only one example, "
            "which is tested without training on "
            "any."
        )
    return assignment, notes


def make_fold_dataset(
    dataset: Dataset,
    pool: PooledSplits,
    assignment: np.ndarray,
    fold: int,
    config: ConfigDict,
    seed: int,
) -> Dataset:
    """Returns the data set whose test split is one fold and whose train split are the others.

    The folds' sizes may differ by one example, and so may the train splits'; therefore
    `ceil(len(train) / batch_size)` may differ, too. The share `validation` of the other folds is set aside
    (0: validation is the train split itself).

    Raises:
        UserError: if the fold does not exist, or there are too few examples to set some aside.
    """
    num_folds = int(np.max(assignment)) + 1
    tested = np.flatnonzero(assignment == fold)
    if not len(tested):
        raise UserError(
            f"There is no fold {fold}: the folds are numbered from 0 to {num_folds - 1}."
        )
    rest = np.flatnonzero(assignment != fold)
    train, test = (
        splits.Pool(Subset(pool.source, indices), pool.labels[indices])
        for indices in (rest, tested)
    )
    parts, split_notes = splits.make_splits(dataset.name, config, seed, train=train, test=test)
    note = (
        f"Test is fold {fold} of {num_folds}, numbered from 0: {len(tested):,} of the {len(assignment):,} "
        "examples of all splits together. Train is the other folds."
    )
    # Drop repeated notes: `load` has already described a validation split.
    notes = list(dict.fromkeys([*dataset.notes, note, *split_notes]))
    return dataclasses.replace(dataset, splits=parts, notes=notes)


def write_folds(
    path: str | os.PathLike, pool: PooledSplits, assignment: np.ndarray, classes: Sequence[str]
) -> None:
    """Writes one row per example to `folds.csv`, in the order of the pool, atomically."""
    rows = zip(_make_rows(pool, classes), assignment.tolist(), strict=True)
    write_csv(path, COLUMNS, ([*row, fold] for row, fold in rows))


def read_folds(path: str | os.PathLike, pool: PooledSplits, classes: Sequence[str]) -> np.ndarray:
    """Reads the fold of each example, `[N]`, that `write_folds` has written.

    Raises:
        UserError: if the file cannot be read, or belongs to other examples than those of the pool.
    """
    try:
        header, *rows = read_csv(path)
        if header != COLUMNS:
            raise ValueError(f"its first line is not {','.join(COLUMNS)}")
        written = [(example, label) for example, _, label, _ in rows]
        assignment = np.array([int(row[-1]) for row in rows], np.int32)
        numbers = set(assignment.tolist())
        if numbers != set(range(len(numbers))):
            raise ValueError("its folds are not numbered from 0 without a gap")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be used ({error}). Delete it to assign the folds again."
        ) from error
    # The split is not compared: the validation share may have changed, which does not affect the folds.
    expected = [(str(example), label) for example, _, label in _make_rows(pool, classes)]
    if written != expected:
        raise UserError(
            f"{path} is about other data: {_describe_difference(written, expected)}. Use the data that it "
            "was written for, or delete it to assign the folds again."
        )
    return assignment


def _describe_difference(
    written: Sequence[tuple[str, str]], expected: Sequence[tuple[str, str]]
) -> str:
    for index, (row, expected_row) in enumerate(zip(written, expected, strict=False)):
        if row != expected_row:
            return f"line {index + 2} has the label {row[1]!r} and the data {expected_row[1]!r}"
    return f"it has {len(written):,} examples and the data {len(expected):,}"


def _make_rows(pool: PooledSplits, classes: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yields number, split and class name of each example."""
    for number, (split, label) in enumerate(zip(pool.origins, pool.labels, strict=True)):
        yield number, split, str(classes[label])


def _unwrap_subsets(source: Source) -> tuple[Source, np.ndarray]:
    """Resolves nested `Subset`s to their base source and the positions there."""
    positions = np.arange(len(source))
    while isinstance(source, Subset):
        positions = np.asarray(source.indices)[positions]
        source = source.source
    return source, positions
