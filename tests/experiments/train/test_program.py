"""Compiled programs, which runs share."""

import dataclasses

import numpy as np
import pytest
from small_runs import small

from experiments.train import program
from experiments.train.optimizer import StepCounts

STEPS = StepCounts(per_epoch=4, total=8, annealing=4, auxiliary_ramp=4)
EXAMPLE = {"inputs": np.zeros((8, 8, 1), np.float32), "label": np.int32(0)}


@pytest.fixture
def compiled(monkeypatch):
    """Counts what would be compiled."""
    configs = []

    def compile_program(config, *_):
        configs.append(config)
        fields = (field.name for field in dataclasses.fields(program.Program))
        return program.Program(**dict.fromkeys(fields) | {"cost": {"compile_seconds": 9.0}})

    monkeypatch.setattr(program, "compile_program", compile_program)
    return configs


def test_runs_share_a_program_unless_what_they_compute_differs(compiled):
    programs = {}

    def find(config=None, num_classes=10, steps=STEPS, example=EXAMPLE):
        config = config or small()
        return program.find_program(programs, config, None, num_classes, steps, example, example)

    assert find().cost["compile_seconds"] == 9.0
    assert find(small(seed=1, **{"data.validation": 0.3})).cost["compile_seconds"] == 0.0
    assert len(compiled) == 1
    find(small(**{"optimizer.learning_rate": 0.5}))
    find(num_classes=3)
    find(steps=dataclasses.replace(STEPS, total=9))
    find(example={**EXAMPLE, "inputs": np.zeros((9, 9, 1), np.float32)})
    assert len(compiled) == len(programs) == 5
