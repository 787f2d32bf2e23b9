"""Stratified splits: each part keeps the classes in the proportions of the whole."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict
from sklearn.model_selection import train_test_split

from experiments.core.errors import UserError
from experiments.data.dataset import Source
from experiments.data.views import Subset

NAMES = ("train", "validation", "test")

ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
"""Spellings of the splits in folders and tables, in lower case."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """Examples to split, with labels that are known without reading any input.

    Attributes:
        source: the examples.
        labels: the label of each, in the same order.
    """

    source: Source
    labels: np.ndarray


def make_splits(
    name: str,
    config: ConfigDict,
    seed: int,
    *,
    train: Pool,
    validation: Pool | None = None,
    test: Pool | None = None,
) -> tuple[dict[str, Source], list[str]]:
    """Makes the three splits; those that a data set does not have are taken from its train pool.

    Args:
        name: name of the data set, for messages.
        config: the data section of the configuration: `validation` and `test` are shares of the whole
            train pool, `limit` is the maximum number of examples per split.
        seed: decides which examples are set aside.
        train: the pool to train on and to take the missing splits from.
        validation: the data set's own validation split, if it has one.
        test: the data set's own test split, if it has one.

    Returns:
        The splits `train`, `validation` and `test`, and notes on how they were made.
    """
    for field in ("validation", "test"):
        if not 0 <= config[field] < 1:
            raise UserError(
                f"--config.data.{field}={config[field]}: choose a share of the training examples, from 0 up "
                "to but not including 1."
            )
    total = len(train.labels)
    notes: list[str] = []
    if test is None and config.test:
        train, test = _set_aside(name, train, config.test, seed, "test", notes)
    if validation is None and config.validation:
        share = config.validation * total / len(train.labels)
        train, validation = _set_aside(name, train, share, seed + 1, "validation", notes)
    if validation is None:
        validation = train
        notes.append("The validation share is 0: validation is the train split itself.")
    if test is None:
        test = validation
        notes.append("The test share is 0: test is the validation split itself.")
    splits = {}
    for split, pool in {"train": train, "validation": validation, "test": test}.items():
        if not len(pool.labels):
            raise UserError(f"{name}: the {split} split is empty; provide examples for it.")
        kept = limit_stratified(pool.labels, config.limit, seed)
        splits[split] = pool.source
        if len(kept) < len(pool.labels):
            splits[split] = Subset(pool.source, kept)
            notes.append(
                f"{split}: {len(kept):,} of {len(pool.labels):,} examples (config.data.limit)."
            )
    return splits, notes


def split_stratified(
    labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Divides positions into a rest and a part that holds about `share` of every class.

    A class with a single example keeps it in the rest. Part and rest each hold at least as many examples as
    there are classes to divide.

    Returns:
        The positions of the rest and of the part, both ascending, and notes on anything unusual.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    single = np.isin(labels, classes[counts < 2])
    divisible = np.flatnonzero(~single)
    num_divisible = int(np.sum(counts >= 2))
    if not num_divisible:
        return np.arange(len(labels)), np.arange(0), []
    notes = []
    if single.any():
        notes.append(f"{single.sum()} of {classes.size} classes have only one example to divide")
    wanted = round(share * len(labels))
    size = min(max(wanted, num_divisible), len(divisible) - num_divisible)
    if size != wanted:
        notes.append(
            f"{size} examples instead of {wanted}, because there are {num_divisible} classes to divide"
        )
    rest, part = train_test_split(
        divisible, test_size=size, stratify=labels[divisible], random_state=seed % 2**32
    )
    return np.sort(np.concatenate([rest, np.flatnonzero(single)])), np.sort(part), notes


def limit_stratified(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Returns at most `limit` positions (0: all), ascending, with every class in proportion."""
    labels = np.asarray(labels)
    if not limit or limit >= len(labels):
        return np.arange(len(labels))
    shuffled = np.random.default_rng(seed % 2**32).permutation(len(labels))
    # The r-th of a class's n examples gets the rank (r + 1/2) / n: the `limit` lowest ranks hold every class
    # in proportion, and this works for classes of any size.
    ranks = np.empty(len(labels))
    for number in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == number)
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(shuffled[np.argsort(ranks, kind="stable")[:limit]])


def _set_aside(
    name: str, pool: Pool, share: float, seed: int, split: str, notes: list[str]
) -> tuple[Pool, Pool]:
    """Returns the rest of a pool and the part for `split`; appends a note on it."""
    if share >= 1:
        raise UserError(
            f"{name}: --config.data.validation and --config.data.test together leave nothing to train on; "
            "make them smaller."
        )
    rest, part, remarks = split_stratified(pool.labels, share, seed)
    if not len(part):
        raise UserError(
            f"{name}: {len(pool.labels)} examples of {len(np.unique(pool.labels))} classes are too few to "
            f"set {share:.0%} aside for {split}; provide at least 2 of some classes, or set "
            f"--config.data.{split}=0."
        )
    note = f"{split}: {len(part):,} examples set aside from train, stratified"
    notes.append("; ".join([note, *remarks]) + ".")
    return _select(pool, rest), _select(pool, part)


def _select(pool: Pool, indices: np.ndarray) -> Pool:
    source = pool.source
    if isinstance(source, Subset):  # A view of a view becomes a view of the original.
        indices_in_original = np.asarray(source.indices)[indices]
        return Pool(Subset(source.source, indices_in_original), pool.labels[indices])
    return Pool(Subset(source, indices), pool.labels[indices])
