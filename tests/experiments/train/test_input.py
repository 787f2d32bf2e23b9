"""Whatever people type is done as typed, or answered in one line with exit code 2.

Commands run in this process, up to where XLA would compile (`ask`, in conftest.py): by then flags, config,
data and the first example have been read, and the network, its state and a training step have been traced.
"""

import random

from typed_values import CONFIGS, is_accepted, list_cases


def test_values_are_accepted_as_they_are_or_refused_in_one_line(ask):
    cases = list_cases(*CONFIGS)
    assert len(cases) > 10_000
    accepted = [is_accepted(ask, case) for case in random.Random(0).sample(cases, 150)]
    assert 20 < sum(accepted) < 130
