"""Examples of one split that are in another as well: a score on those says little.

They are found by their content. A source that knows it has `digests`, a number for each example from
`contents.digest`, and may have `names`, what to call each in a sentence; views need nothing of their own.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from experiments.data.dataset import Source
from experiments.data.sources import flatten

_PLACE = np.dtype([("digest", np.uint64), ("base", np.int64), ("position", np.int64)])


def notes(splits: Mapping[str, Source]) -> list[str]:
    """Says which splits have content in common, how much, and where for example.

    Args:
        splits: the splits by name; an example that two of them show on purpose (validation may be train
            itself) is no copy.
    """
    bases: list = []
    places = {name: _places(source, bases) for name, source in splits.items()}
    found = []
    for first, second in itertools.combinations(places, 2):
        known, tested = places[first], places[second]
        copies = tested[np.isin(tested["digest"], known["digest"]) & ~np.isin(tested, known)]
        if len(copies):
            one = copies[0]
            other = known[known["digest"] == one["digest"]][0]
            pair = " is ".join(_name(bases[at["base"]], int(at["position"])) for at in (one, other))
            found.append(
                f"{len(copies):,} of the {len(tested):,} examples of {second} are in {first} too, with the "
                f"same content ({pair}, for example): scores on {second} are no fair ones for them."
            )
    return found


def _name(base, position: int) -> str:
    names = getattr(base, "names", None)
    return names[position] if names else f"example {position}"


def _places(source: Source, bases: list) -> np.ndarray:
    """Content and origin of each example whose content is known; `bases` gets the origins."""
    behind, owners, positions = flatten(source)
    parts = []
    for number, base in enumerate(behind):
        digests = getattr(base, "digests", ())
        if not len(digests):
            continue
        if not any(base is other for other in bases):
            bases.append(base)
        here = positions[owners == number]
        part = np.empty(len(here), _PLACE)
        part["digest"] = np.asarray(digests, np.uint64)[here]
        part["base"] = next(i for i, other in enumerate(bases) if other is base)
        part["position"] = here
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty(0, _PLACE)
