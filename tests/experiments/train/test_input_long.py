"""Every value of every setting."""

import random

import pytest
from typed_values import CONFIGS, is_accepted, list_cases

pytestmark = pytest.mark.long


def test_the_counts_of_the_guide():
    assert len(list_cases(*CONFIGS)) > 20_000 and 8 * len(CONFIGS) == 168


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_is_accepted_as_it_is_or_refused_in_one_line(ask, name):
    cases = list_cases(name)
    accepted = [case for case in cases if is_accepted(ask, case)]
    assert 100 < len(accepted) < len(cases) / 2
    for case in random.Random(name).sample(accepted, 8):
        is_accepted(ask, case, deep=True)
