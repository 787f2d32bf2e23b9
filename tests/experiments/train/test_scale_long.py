"""The compiled step of a large network."""

import re

import jax
import numpy as np
import pytest

from dyn.diagnostics import count_parameters
from experiments.configs import odconv
from experiments.tasks import make_task
from experiments.train.optimizer import StepCounts
from experiments.train.program import compile_program

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("standard_promotion")]


def test_a_device_holds_its_share_of_the_step_of_an_odconv_resnet50_with_eight_kernels():
    config = odconv.get_config("tiny_imagenet")
    config.model.depth, config.conv.num_kernels = 50, 8
    config.batch_size, config.shard_parameters = 32, True
    example = {"inputs": np.zeros((64, 64, 3), np.float32), "label": np.int32(0)}
    steps = StepCounts(per_epoch=10, total=100, annealing=20, auxiliary_ramp=0)
    program = compile_program(config, make_task(config), 3, steps, example, example)
    number = count_parameters(program.state_shape.params)
    assert number > 170e6
    held = program.train_step.memory_analysis().argument_size_in_bytes
    assert held < 1.02 * 3 * 4 * number / jax.device_count()
    text = program.train_step.as_text()
    assert not re.search(r" (all-to-all|collective-permute)(-start)?\(", text)
