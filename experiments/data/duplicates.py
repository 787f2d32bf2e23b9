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
from experiments.data.views import flatten

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
