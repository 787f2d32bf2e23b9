"""Stratified splits: each part keeps the classes in the proportions of the whole."""

import dataclasses

import numpy as np
from sklearn.model_selection import train_test_split

from experiments.core.errors import UserError
from experiments.data.dataset import Source
from experiments.data.sources import Subset


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """Examples to split, with the labels known in advance so that no input has to be read.

    Attributes:
        source: the examples.
        labels: the label of each, in the same order.
    """

    source: Source
    labels: np.ndarray


def stratified_split(
    labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Divides positions into a rest and a part that holds about `share` of every class.

    A class with a single example keeps it in the rest. The part holds at least as many examples
    as there are classes to divide, and leaves at least as many behind.

    Args:
        labels: `[N]` class numbers.
        share: how much goes into the part, between 0 and 1.
        seed: decides which examples go.

    Returns:
        The positions of the rest and of the part, both ascending, and notes on what was unusual.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    lonely = np.isin(labels, classes[counts < 2])
    divisible = np.flatnonzero(~lonely)
    kinds = int(np.sum(counts >= 2))
    if not kinds:
        return np.arange(len(labels)), np.arange(0), []
    notes = []
    if lonely.any():
        notes.append(f"{lonely.sum()} of {classes.size} classes have only one example to divide")
    wanted = round(share * len(labels))
    size = min(max(wanted, kinds), len(divisible) - kinds)
    if size != wanted:
        notes.append(f"{size} examples instead of {wanted}, as there are {kinds} classes to divide")
    rest, part = train_test_split(
        divisible, test_size=size, stratify=labels[divisible], random_state=seed % 2**32
    )
    return np.sort(np.concatenate([rest, np.flatnonzero(lonely)])), np.sort(part), notes


def stratified_limit(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Chooses at most `limit` positions, every class in proportion.

    Args:
        labels: `[N]` class numbers.
        limit: the largest number to choose; 0 chooses all.
        seed: decides which.

    Returns:
        The chosen positions, ascending.
    """
    labels = np.asarray(labels)
    if not limit or limit >= len(labels):
        return np.arange(len(labels))
    shuffled = np.random.default_rng(seed % 2**32).permutation(len(labels))
    # The r-th of a class's n examples stands at (r + 1/2) / n of the way: the first `limit` along
    # the way hold every class in proportion, and no class is too small for this.
    place = np.empty(len(labels))
    for number in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == number)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(shuffled[np.argsort(place, kind="stable")[:limit]])


def arrange(
    name: str,
    config,
    seed: int,
    *,
    train: Pool,
    validation: Pool | None = None,
    test: Pool | None = None,
) -> tuple[dict[str, Source], list[str]]:
    """Makes the three splits, carving those a data set does not have out of its train pool.

    Args:
        name: what the data set is called in messages.
        config: the data part of the configuration: `validation` and `test` are shares of the train
            pool as it was found, `limit` is the most examples a split may keep.
        seed: decides which examples are set aside.
        train: the pool to train on, and to carve from.
        validation: the data set's own validation split, if it has one.
        test: the data set's own test split, if it has one.

    Returns:
        The splits `train`, `validation` and `test`, and notes on how they came about.

    Raises:
        UserError: if a share is out of range, or there are too few examples to divide.
    """
    for field in ("validation", "test"):
        if not 0 <= config[field] < 1:
            raise UserError(
                f"--config.data.{field} is a share of the training examples, from 0 up to but not "
                f"including 1; {config[field]} is not."
            )
    found = len(train.labels)
    notes: list[str] = []
    if test is None and config.test:
        train, test = _carve(name, train, config.test, seed, "test", notes)
    if validation is None and config.validation:
        share = config.validation * found / len(train.labels)
        train, validation = _carve(name, train, share, seed + 1, "validation", notes)
    if validation is None:
        validation = train
        notes.append("No validation share was asked for: validation is the train split itself.")
    if test is None:
        test = validation
        notes.append("No test share was asked for: test is the validation split itself.")
    splits = {}
    for split, pool in {"train": train, "validation": validation, "test": test}.items():
        if not len(pool.labels):
            raise UserError(f"{name}: the {split} split is empty; provide examples for it.")
        kept = stratified_limit(pool.labels, config.limit, seed)
        splits[split] = pool.source
        if len(kept) < len(pool.labels):
            splits[split] = Subset(pool.source, kept)
            notes.append(
                f"{split}: {len(kept):,} of {len(pool.labels):,} examples (config.data.limit)."
            )
    return splits, notes


def _carve(
    name: str, pool: Pool, share: float, seed: int, split: str, notes: list[str]
) -> tuple[Pool, Pool]:
    if share >= 1:
        raise UserError(
            f"{name}: --config.data.validation and --config.data.test together leave nothing to "
            "train on; make them smaller."
        )
    rest, part, remarks = stratified_split(pool.labels, share, seed)
    if not len(part):
        raise UserError(
            f"{name}: {len(pool.labels)} examples of {len(np.unique(pool.labels))} classes are too "
            f"few to set {share:.0%} aside for {split}; provide at least 2 of some classes, or "
            f"set --config.data.{split}=0."
        )
    said = f"{split}: {len(part):,} examples set aside from train, stratified"
    notes.append("; ".join([said, *remarks]) + ".")
    return _view(pool, rest), _view(pool, part)


def _view(pool: Pool, indices: np.ndarray) -> Pool:
    source = pool.source
    if isinstance(source, Subset):  # A view of a view is a view of the original.
        return Pool(
            Subset(source.source, np.asarray(source.indices)[indices]), pool.labels[indices]
        )
    return Pool(Subset(source, indices), pool.labels[indices])
