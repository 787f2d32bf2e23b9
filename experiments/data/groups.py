"""Recordings dealt out to training, validation and test: what belongs together stays together."""

import csv
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.audio.annotations import compile_pattern
from experiments.core.errors import UserError
from experiments.data.splits import stratified_split

SPLITS = ("train", "validation", "test")


def groups_of(names: Sequence[str], pattern: str) -> list[str]:
    """What each recording belongs to, such as the site in its name; each to itself where nothing is said.

    Args:
        names: the recordings' paths.
        pattern: a regular expression whose first group is the recording's; one without a match is its own.

    Raises:
        UserError: if it is no such expression.
    """
    found = compile_pattern(pattern, "group_pattern")
    if found is None:
        return list(names)
    matches = [found.search(name) for name in names]
    return [
        match[1] if match and match[1] is not None else name
        for name, match in zip(names, matches, strict=True)
    ]


def deal_out(
    groups: Sequence[str],
    labels: Sequence[Hashable],
    validation: float,
    test: float,
    seed: int,
) -> tuple[list[str], list[str]]:
    """Deals groups of recordings out, each class in about the same shares as far as that goes.

    A group counts for the class that most of its recordings have. A class of a single group is trained on.

    Args:
        groups: what each recording belongs to.
        labels: what each is to be balanced by.
        validation: share of the groups; 0 for none.
        test: likewise.
        seed: decides which.

    Returns:
        The split of each recording, and notes on what was unusual.
    """
    names = sorted(set(groups))
    kinds = {name: Counter() for name in names}
    for group, label in zip(groups, labels, strict=True):
        kinds[group][label] += 1
    commonest = [kinds[name].most_common(1)[0][0] for name in names]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(commonest))}
    balance = np.array([numbers[label] for label in commonest])
    split_of = np.full(len(names), "train", dtype=object)
    rest, notes = np.arange(len(names)), []
    for split, share in (("test", test), ("validation", validation)):
        if not share:
            continue
        share = share * len(names) / len(rest)
        left, part, said = stratified_split(balance[rest], min(share, 1.0), seed)
        split_of[rest[part]] = split
        rest = rest[left]
        notes += [f"{split}: {sentence}." for sentence in said]
        seed += 1
    chosen = dict(zip(names, split_of, strict=True))
    return [chosen[group] for group in groups], notes


def read(path: Path) -> dict[str, str]:
    """The split of each file that a table names, in columns `file` and `split`.

    A run's own splits.csv is such a table. Names may be written with backslashes.

    Raises:
        UserError: if it is none, or has a file in two splits.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not rows or not {"file", "split"} <= rows[0].keys():
        raise UserError(f"{path} has no rows with the columns file and split.")
    found: dict[str, str] = {}
    for row in rows:
        name = (row["file"] or "").replace("\\", "/").removeprefix("./")
        split = (row["split"] or "").strip().lower()
        if found.setdefault(name, split) != split:
            raise UserError(f"{path}: {name} is in two splits, {found[name]} and {split}.")
    return check(found, path)


def check(found: Mapping[str, str], path: object) -> dict[str, str]:
    """The same, with all splits' names as they are here.

    Raises:
        UserError: for one that does not exist.
    """
    short = {"val": "validation", "valid": "validation", "training": "train", "testing": "test"}
    named = {}
    for file, split in found.items():
        split = (split or "").strip().lower()
        split = short.get(split, split)
        if split not in SPLITS:
            raise UserError(f"{path}: {file} has the split '{split}'; write {', '.join(SPLITS)}.")
        named[file] = split
    return named
