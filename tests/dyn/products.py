"""Products of parameters for tests, of which a part runs in CI."""

import itertools
from collections.abc import Collection, Iterable

import pytest


def thin_out(*axes: Iterable, step: int, slow: Collection = ()) -> list:
    """Returns all combinations of values; all but one in `step`, along diagonals, are marked long.

    A value of one axis meets one in `step` of the values of another, so that none is left out if each axis
    has `step` values or more.

    Args:
        axes: the values of each parameter.
        step: 1 keeps all.
        slow: values of the first axis that are always marked long.
    """
    numbered = itertools.product(*(enumerate(axis) for axis in axes))
    return [
        pytest.param(
            *(value for _, value in pairs),
            marks=[pytest.mark.long]
            if sum(place for place, _ in pairs) % step or pairs[0][1] in slow
            else [],
        )
        for pairs in numbered
    ]
