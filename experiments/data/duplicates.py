"""Finds examples that occur in two splits, which makes scores on the second one meaningless.

Examples are compared by the digest of their content. A source that knows its content has `digests`, one
number per example from `core.digests.digest`, and may have `names`, one per example for messages. Views
need neither.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from experiments.core.words import agree
from experiments.data.dataset import Source
from experiments.data.views import flatten, list_labels

_ORIGIN = np.dtype([("digest", np.uint64), ("base", np.int64), ("position", np.int64)])


def describe_duplicates(splits: Mapping[str, Source]) -> list[str]:
    """Returns one sentence for each pair of splits with common content: how many examples, and one of them.

    Args:
        splits: the splits by name. An example that two of them share on purpose (validation may be train
            itself) does not count.
    """
    bases: list = []
    origins = {name: _find_origins(source, bases) for name, source in splits.items()}
    notes = []
    for first, second in itertools.combinations(origins, 2):
        known, tested = origins[first], origins[second]
        copies = tested[np.isin(tested["digest"], known["digest"]) & ~np.isin(tested, known)]
        if len(copies):
            copy = copies[0]
            original = known[known["digest"] == copy["digest"]][0]
            copy_name, original_name = (
                _get_name(bases[origin["base"]], int(origin["position"]))
                for origin in (copy, original)
            )
            notes.append(
                f"{len(copies):,} of the {len(tested):,} examples of {second} "
                f"{agree(len(copies), 'is', 'are')} "
                f"also in {first}, with the same content (for example, {copy_name} is {original_name}): "
                f"scores on {second} are too good for {agree(len(copies), 'it', 'them')}."
            )
    return notes


def describe_contradictions(splits: Mapping[str, Source]) -> list[str]:
    """Returns one sentence for each split in which examples of the same content have different labels."""
    notes = []
    # Validation may be train itself.
    different = {id(source): (split, source) for split, source in reversed(splits.items())}
    for split, source in reversed(different.values()):
        bases, owners, positions = flatten(source)
        if not all(len(getattr(base, "digests", ())) for base in bases):
            continue
        labels = _number_labels(list_labels(source))
        contents = np.empty(len(owners), np.uint64)
        for number, base in enumerate(bases):
            chosen = owners == number
            contents[chosen] = np.asarray(base.digests, np.uint64)[positions[chosen]]
        order = np.lexsort((labels, contents))
        same = contents[order][1:] == contents[order][:-1]
        wrong = np.flatnonzero(same & (labels[order][1:] != labels[order][:-1]))
        if len(wrong):
            first, second = (
                _get_name(bases[owners[place]], int(positions[place]))
                for place in (order[wrong[0]], order[wrong[0] + 1])
            )
            notes.append(
                f"{split} has the same content with different labels "
                f"{agree(len(wrong), 'once', f'{len(wrong):,} times')} (for example, {first} and {second}): "
                "one of them is wrong, or both are right and the data needs several labels."
            )
    return notes


def _number_labels(labels: np.ndarray) -> np.ndarray:
    """Returns a number for each label, equal for equal ones."""
    if labels.ndim == 1:
        return labels
    rows = np.nan_to_num(labels, nan=-1.0)
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def _get_name(base, position: int) -> str:
    names = getattr(base, "names", None)
    return names[position] if names else f"example {position}"


def _find_origins(source: Source, bases: list) -> np.ndarray:
    """Returns digest, base and position of each example with a known digest; appends new bases to `bases`."""
    flat_bases, owners, positions = flatten(source)
    parts = []
    for owner, base in enumerate(flat_bases):
        digests = getattr(base, "digests", ())
        if not len(digests):
            continue
        if not any(base is other for other in bases):
            bases.append(base)
        in_base = positions[owners == owner]
        part = np.empty(len(in_base), _ORIGIN)
        part["digest"] = np.asarray(digests, np.uint64)[in_base]
        part["base"] = next(i for i, other in enumerate(bases) if other is base)
        part["position"] = in_base
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty(0, _ORIGIN)
