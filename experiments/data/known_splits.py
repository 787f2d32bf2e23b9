"""Keeps the examples of a run in the splits that they had, whatever has been added to its data since."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.core.errors import UserError
from experiments.core.words import agree, count_noun
from experiments.data import splits
from experiments.data.dataset import Dataset
from experiments.data.fingerprint import Entry, list_files_and_contents
from experiments.data.views import Chain, Subset, flatten

Splits = frozenset[str]
"""The splits that an example is in: several where one split stands for another."""


@dataclasses.dataclass(frozen=True)
class KnownSplits:
    """The splits of files, found by name and content, by content alone, or by name alone."""

    by_both: dict[tuple[str, str], Splits]
    by_content: dict[str, Splits]
    by_file: dict[str, Splits]

    def find(self, file: str, content: str) -> Splits | None:
        """Returns the splits that a file had; None for a new one."""
        return (
            self.by_both.get((file, content))
            or self.by_content.get(content)
            or self.by_file.get(file)
        )


def index_splits(entries: Sequence[Entry]) -> KnownSplits:
    """Returns the splits of the files in a run's list."""
    by_both: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        by_both.setdefault((entry.file, entry.content), set()).add(entry.split)
    by_content: dict[str, set[Splits]] = {}
    by_file: dict[str, Splits] = {}
    for (file, content), names in by_both.items():
        by_content.setdefault(content, set()).add(frozenset(names))
        by_file[file] = frozenset(names)
    return KnownSplits(
        {key: frozenset(names) for key, names in by_both.items()},
        # Copies in different splits say nothing about one more copy.
        {content: next(iter(sets)) for content, sets in by_content.items() if len(sets) == 1},
        by_file,
    )


def choose_split(entries: Sequence[Entry]) -> dict[str, str]:
    """Returns the split of each file; the first of those that it is in."""
    order = {name: number for number, name in enumerate(splits.NAMES)}
    in_order = sorted(entries, key=lambda entry: order.get(entry.split, len(order)), reverse=True)
    return {entry.file: entry.split for entry in in_order}


def keep_splits(dataset: Dataset, entries: Sequence[Entry]) -> Dataset:
    """Returns a data set whose examples are in the splits in which a run has had them.

    New examples stay in the split that was chosen for them.

    Raises:
        UserError: if nothing would be left of a split.
    """
    if not entries:
        return dataset
    known = index_splits(entries)
    everything = Chain(list(dataset.splits.values()))
    names = [split for split, source in dataset.splits.items() for _ in range(len(source))]
    files, contents = list_files_and_contents(everything)
    # An example that two splits share is one example.
    bases, owners, positions = flatten(everything)
    number_of = {id(base): number for number, base in enumerate(bases)}
    examples = [(number_of[id(bases[o])], int(p)) for o, p in zip(owners, positions, strict=True)]
    first = {example: place for place, example in reversed(list(enumerate(examples)))}
    current: dict[tuple[int, int], set[str]] = {}
    for example, name in zip(examples, names, strict=True):
        current.setdefault(example, set()).add(name)
    kept = {
        example: known.find(files[place], f"{int(contents[place]):016x}") or current[example]
        for example, place in first.items()
    }
    moved = sum(kept[example] != current[example] for example in first)
    if not moved:
        return dataset
    parts = {}
    for split in dataset.splits:
        members = [first[example] for example in sorted(kept) if split in kept[example]]
        if not members:
            raise UserError(
                f"{dataset.name}: nothing is left of the {split} split that this run has had. Restore its "
                "files, or start a new run in another --workdir."
            )
        parts[split] = Subset(everything, np.array(members))
    note = f"{count_noun(moved, 'example')} {agree(moved, 'keeps the split', 'keep the splits')} of before."
    return dataclasses.replace(dataset, splits=parts, notes=[*dataset.notes, note])
