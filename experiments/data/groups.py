"""Assigns recordings to train, validation and test; recordings of one group stay in one split."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from experiments.audio.annotations import compile_pattern
from experiments.audio.matching import normalize
from experiments.audio.tables import read_records
from experiments.core.errors import UserError
from experiments.data import splits

# The names that `name_clip` gives; a copy may have more at its end.
_CLIP = re.compile(r"(?:clip|[01]\.\d{3})_(.+)_\d+\.\d\ds(?:[-( ].*)?")


def find_groups(names: Sequence[str], pattern: str) -> list[str]:
    """Returns the group of each recording, such as the site in its name.

    It is the first group of the regular expression `pattern`. Each recording that does not match
    is a separate group. With an empty pattern all recordings are separate groups, except that clips (see
    `name_clip`) share the group of the recording that they were cut from, because they overlap.

    Example:
        >>> find_groups(["owl/0.912_a_3.00s.wav", "noise/0.500_a_4.00s.wav", "b.wav"], "")
        ['a', 'a', 'b.wav']
    """
    expression = compile_pattern(pattern, "group_pattern")
    if expression is None:
        return _group_clips(names)
    matches = [expression.search(name) for name in names]
    return [
        match[1] if match and match[1] is not None else name
        for name, match in zip(names, matches, strict=True)
    ]


def name_clip(recording: str, start: float, score: float | None) -> str:
    """Returns the name without suffix of a clip of a detection, by which `find_groups` knows its recording.

    Example:
        >>> name_clip("site/a:1.wav", 3.0, 0.8125), name_clip("b.wav", 0.25, None)
        ('0.812_a_1_3.00s', 'clip_b_0.25s')
    """
    first = "clip" if score is None or not 0 <= score <= 1 else f"{score:.3f}"
    return f"{first}_{make_file_name(Path(recording).stem)}_{start:.2f}s"


def make_file_name(text: str) -> str:
    """Returns a text without what file systems refuse or what leaves a folder."""
    name = re.sub(r"[^\w ,.()&+-]", "_", normalize(text)).strip(" .")
    # A name may have 255 bytes, and others are added.
    return name.encode()[:100].decode(errors="ignore").strip(" .") or "_"


def _group_clips(names: Sequence[str]) -> list[str]:
    """Returns for clips and their recordings the recording's file name without suffix; else the name."""
    sources, cut = [], set()
    for name in names:
        source = stem = PurePosixPath(name).stem
        while match := _CLIP.fullmatch(source):  # A clip may be cut out of a clip.
            source = match[1]
        sources.append(make_file_name(source))
        if source != stem:
            cut.add(sources[-1])
    return [source if source in cut else name for name, source in zip(names, sources, strict=True)]


def assign_splits(
    groups: Sequence[str],
    labels: Sequence[Hashable],
    validation: float,
    test: float,
    seed: int,
    known: Sequence[str | None] = (),
) -> tuple[list[str], list[str]]:
    """Assigns whole groups of recordings to splits, with about the same share of every class.

    A group counts for the label that most of its recordings have. A label with a single group is trained on.
    Recordings that were added to a run have the split of their group, if one is known, and the others are
    divided among themselves, so that no recording ever changes its split.

    Args:
        groups: the group of each recording.
        labels: the label of each recording that is balanced over the splits.
        validation, test: shares of the groups; 0 for none.
        seed: decides which groups.
        known: the split that each recording already has; None for a new one, () if all are new.

    Returns:
        The split of each recording, and notes on anything unusual.
    """
    if any(known):
        return _assign_new(groups, labels, validation, test, seed, known)
    names = sorted(set(groups))
    label_counts = {name: Counter() for name in names}
    for group, label in zip(groups, labels, strict=True):
        label_counts[group][label] += 1
    main_labels = [label_counts[name].most_common(1)[0][0] for name in names]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(main_labels))}
    balance = np.array([numbers[label] for label in main_labels])
    split_of = np.full(len(names), "train", dtype=object)
    rest, notes = np.arange(len(names)), []
    for split, share in (("test", test), ("validation", validation)):
        if not share:
            continue
        share_of_rest = min(share * len(names) / len(rest), 1.0)
        left, part, remarks = splits.split_stratified(balance[rest], share_of_rest, seed)
        split_of[rest[part]] = split
        rest = rest[left]
        notes += [f"{split}: {remark}." for remark in remarks]
        seed += 1
    split_of_group = dict(zip(names, split_of, strict=True))
    return [split_of_group[group] for group in groups], notes


def _assign_new(
    groups: Sequence[str],
    labels: Sequence[Hashable],
    validation: float,
    test: float,
    seed: int,
    known: Sequence[str | None],
) -> tuple[list[str], list[str]]:
    """Assigns the recordings that have no split yet; see `assign_splits`."""
    split_of_group = {}
    for group, split in zip(groups, known, strict=True):
        if split:
            split_of_group.setdefault(group, split)
    split_of = [
        split or split_of_group.get(group) for group, split in zip(groups, known, strict=True)
    ]
    new = [index for index, split in enumerate(split_of) if split is None]
    notes = []
    if new:
        assigned, notes = assign_splits(
            [groups[index] for index in new],
            [labels[index] for index in new],
            validation,
            test,
            seed,
        )
        for index, split in zip(new, assigned, strict=True):
            split_of[index] = split
    return [split or "train" for split in split_of], notes


def read_splits(path: Path) -> dict[str, str]:
    """Reads the split of each file from a table with the columns `file` and `split`.

    A run's own splits.csv is such a table. Names may be written with backslashes.

    Raises:
        UserError: if it is another kind of file, or has a file in two splits.
    """
    try:
        rows = read_records(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not rows or not {"file", "split"} <= rows[0].keys():
        raise UserError(f"{path} has no rows with the columns file and split.")
    split_of: dict[str, str] = {}
    for row in rows:
        name = row["file"].replace("\\", "/").removeprefix("./")
        split = row["split"].strip().lower()
        if split_of.setdefault(name, split) != split:
            raise UserError(f"{path}: {name} is in two splits, {split_of[name]} and {split}.")
    return check_splits(split_of, path)


def check_splits(split_of: Mapping[str, str], path: object) -> dict[str, str]:
    """Returns the table of the file `path` with the splits under their usual names.

    Raises:
        UserError: for a split that does not exist.
    """
    checked = {}
    for file, split in split_of.items():
        split = (split or "").strip().lower()
        if split not in splits.ALIASES:
            raise UserError(
                f"{path}: {file} has the split '{split}'; write {', '.join(splits.NAMES)}."
            )
        checked[file] = splits.ALIASES[split]
    return checked
