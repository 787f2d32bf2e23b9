"""Many values of the settings of every config."""

import random

import pytest
from typed_values import CONFIGS, draw_accepted, is_accepted, list_cases

pytestmark = pytest.mark.matrix


def test_values_are_accepted_as_they_are_or_refused_in_one_line(ask):
    for case in random.Random(2).sample(list_cases(*CONFIGS), 700):
        is_accepted(ask, case)


def test_accepted_values_lead_to_a_training_step(ask):
    for case in draw_accepted(ask, 12, random.Random(3)):
        is_accepted(ask, case, deep=True)
