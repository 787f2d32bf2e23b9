"""The fingerprint of a data set: names, labels and contents of its files in order, split by split.

A run keeps it, so that it is never continued with other data unnoticed.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.core import digests
from experiments.core.words import agree, count_noun
from experiments.data.dataset import Dataset, Source
from experiments.data.views import flatten, list_labels

# Names that a source gives to examples that are no files.
_NUMBERED = re.compile(r"^(example|picture|record) \d|, line \d+$")
SHOWN = 3  # names and differences of each kind that a message spells out


class Entry(NamedTuple):
    """A file of a split, or an example where examples are no files.

    Attributes:
        split: name of the split.
        file: name of the file below the folder of the data, or of the example.
        label: the names of its classes, separated by semicolons; '' for a mask.
        labels: digest of its label; where several examples are from one file, of theirs.
        content: digest of its content.
    """

    split: str
    file: str
    label: str
    labels: str
    content: str


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a data set.

    Attributes:
        digest: of everything below.
        classes: the names of the classes in their order.
        examples: the number of examples of each split.
        digests: the digest of the entries of each split, in their order.
        entries: all files, split by split; empty where the list was lost.
    """

    digest: str
    classes: Sequence[str]
    examples: Mapping[str, int]
    digests: Mapping[str, str]
    entries: Sequence[Entry] = ()


def compute_fingerprint(dataset: Dataset) -> Fingerprint:
    """Returns the fingerprint of a data set; see `Source` for what saves reading every example."""
    entries, split_digests, examples = [], {}, {}
    for split, source in dataset.splits.items():
        in_split = list_entries(split, source, dataset.classes)
        entries += in_split
        examples[split] = len(source)
        split_digests[split] = _hash("\n".join("\0".join(entry[1:]) for entry in in_split))
    classes = list(dataset.classes)
    digest = _hash(json.dumps([classes, examples, split_digests], sort_keys=True))
    return Fingerprint(digest, classes, examples, split_digests, entries)


def list_entries(split: str, source: Source, classes: Sequence[str]) -> list[Entry]:
    """Returns the files of a split in the order of its examples."""
    labels = list_labels(source)
    keys, label_digests = _encode_labels(labels)
    text_of = {key: _name_label(labels[index], classes) for key, index in keys.items()}
    texts = [text_of[one] for one in label_digests.tolist()]
    files, contents = list_files_and_contents(source)
    return _merge_files(split, files, texts, label_digests, contents)


def list_files_and_contents(source: Source) -> tuple[list[str], np.ndarray]:
    """Returns the name of each example's file, or its number without one, and the digest of its content."""
    bases, owners, positions = flatten(source)
    files = np.empty(len(owners), object)
    contents = np.empty(len(owners), np.uint64)
    for number, base in enumerate(bases):
        chosen = owners == number
        files[chosen] = _list_files(base, positions[chosen])
        contents[chosen] = _list_contents(base, positions[chosen])
    return files.tolist(), contents


def _list_files(base: Source, positions: np.ndarray) -> list[str]:
    names = getattr(base, "files", None) or getattr(base, "names", None)
    return [names[index] if names else f"example {index}" for index in positions]


def _list_contents(base: Source, positions: np.ndarray) -> np.ndarray:
    for name in ("contents", "digests"):
        known = getattr(base, name, ())
        if len(known):
            return np.asarray(known, np.uint64)[positions]
    read = (np.ascontiguousarray(base[int(index)]["inputs"]) for index in positions)
    return np.array([digests.compute_digest(inputs.tobytes()) for inputs in read], np.uint64)


def describe_changes(old: Fingerprint, new: Fingerprint) -> str:
    """Returns what of the data has changed, as the middle of a sentence; '' if nothing has."""
    if old.digest == new.digest:
        return ""
    phrases = _describe_classes(old.classes, new.classes)
    if old.entries:
        phrases += _describe_entries(old, new)
    for split in {**old.examples, **new.examples}:
        before, now = old.examples.get(split, 0), new.examples.get(split, 0)
        if before != now:
            phrases.append(f"{split} had {count_noun(before, 'example')} and has {now:,}")
    return "; ".join(phrases) or "files, labels or their order differ"


def _describe_classes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Returns a phrase for each kind of change in the classes."""
    renamed = _match_renamed(old, new)
    gone = [name for name in old if name not in new and name not in renamed]
    added = [name for name in new if name not in old and name not in renamed.values()]
    phrases = [f"the class {before} is now called {now}" for before, now in renamed.items()][:SHOWN]
    for names, what in ((gone, "removed"), (added, "added")):
        if names:
            count = count_noun(len(names), "class", "classes")
            phrases.append(f"{count} {agree(len(names), 'was', 'were')} {what} ({_join(names)})")
    if not phrases and list(old) != list(new):
        phrases.append("the classes are in another order")
    return phrases


def _describe_entries(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Returns a phrase for each kind of change in the files."""
    before, now = _index_files(old.entries), _index_files(new.entries)
    common = [file for file in before if file in now]
    renamed_classes = _match_renamed(old.classes, new.classes)

    def is_relabelled(file: str) -> bool:
        names = [renamed_classes.get(name, name) for name in before[file].label.split(";")]
        same_names = sorted(names) == sorted(now[file].label.split(";"))
        return not same_names or (
            before[file].labels != now[file].labels and list(old.classes) == list(new.classes)
        )

    def describe_label(file: str) -> str:
        labels = before[file].label, now[file].label
        return file if labels[0] == labels[1] else f"{file}: {labels[1]} instead of {labels[0]}"

    gone = [file for file in before if file not in now]
    added = [file for file in now if file not in before]
    by_content = {before[file].content: file for file in gone}
    renamed = {f: by_content[now[f].content] for f in added if now[f].content in by_content}
    kinds: list[tuple[str, str, Sequence[str]]] = [
        ("was", "added", [file for file in added if file not in renamed]),
        ("was", "removed", [file for file in gone if file not in renamed.values()]),
        ("was", "renamed", [f"{old_name} to {name}" for name, old_name in renamed.items()]),
        ("has", "another content", [f for f in common if before[f].content != now[f].content]),
        ("has", "another label", [describe_label(f) for f in common if is_relabelled(f)]),
    ]
    moved = [
        f"{file} from {before[file].split} to {now[file].split}"
        for file in common
        if before[file].split != now[file].split
    ]
    kinds.append(("was", "moved between splits", moved))
    unit = "example" if _NUMBERED.search(next(iter(now), "")) else "file"
    phrases = []
    for verb, what, names in kinds:
        if names:
            plural = {"was": "were", "has": "have"}[verb]
            phrases.append(
                f"{count_noun(len(names), unit)} {agree(len(names), verb, plural)} {what} "
                f"({_join(names)})"
            )
    if not phrases and [e.file for e in old.entries] != [e.file for e in new.entries]:
        phrases.append("the files are in another order")
    return phrases


def _index_files(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Returns the entry of each file, with all its splits if they share it."""
    by_file: dict[str, Entry] = {}
    for entry in entries:
        if (first := by_file.setdefault(entry.file, entry)) is not entry:
            by_file[entry.file] = first._replace(split=f"{first.split} and {entry.split}")
    return by_file


def _match_renamed(old: Sequence[str], new: Sequence[str]) -> dict[str, str]:
    """Returns the new name of each class that has only been renamed."""
    if len(old) != len(new):
        return {}
    pairs = zip(old, new, strict=True)
    return {before: now for before, now in pairs if before not in new and now not in old}


def _encode_labels(labels: np.ndarray) -> tuple[dict[int, int], np.ndarray]:
    """Returns the first example with each label, by the label's digest, and the digest of each example's."""
    rows = labels.reshape(len(labels), -1)
    if rows.dtype.kind == "f":
        rows = np.nan_to_num(rows, nan=-1.0)
    unique, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    of_unique = [digests.compute_digest(row.astype("<f8").tobytes()) for row in unique]
    if rows.dtype == np.uint64:  # digests already, which a float would round
        of_unique = [int(row[0]) for row in unique]
    keys = dict(zip(of_unique, first.tolist(), strict=True))
    return keys, np.array(of_unique, np.uint64)[inverse.reshape(-1)]


def _name_label(label: np.ndarray, classes: Sequence[str]) -> str:
    if label.ndim:
        return ";".join(str(name) for name, value in zip(classes, label, strict=True) if value == 1)
    if label.dtype == np.uint64 or int(label) >= len(classes):
        return ""
    return str(classes[int(label)])


def _merge_files(
    split: str,
    files: Sequence[str],
    texts: Sequence[str],
    labels: np.ndarray,
    contents: np.ndarray,
) -> list[Entry]:
    """Returns one entry for the examples that follow each other and are from one file."""
    starts = [i for i, file in enumerate(files) if not i or file != files[i - 1]]
    entries = []
    for start, end in zip(starts, [*starts[1:], len(files)], strict=True):
        label = texts[start]
        if end - start > 1:
            names = {name for text in texts[start:end] for name in text.split(";") if name}
            label = ";".join(sorted(names))
        entries.append(
            Entry(
                split,
                files[start],
                label,
                _join_digests(labels[start:end]),
                _join_digests(contents[start:end]),
            )
        )
    return entries


def _join_digests(parts: np.ndarray) -> str:
    number = int(parts[0])
    if len(parts) > 1:
        number = digests.compute_digest(parts.astype("<u8").tobytes())
    return f"{number:016x}"


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
