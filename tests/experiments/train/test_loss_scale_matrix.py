"""Loss scaling in the training of a network in half precision."""

import functools

import jax
import numpy as np
import pytest
from small_runs import change

from experiments.configs import base
from experiments.tasks.classification import Classification
from experiments.train.loss_scale import all_finite, make_loss_scale
from experiments.train.optimizer import StepCounts
from experiments.train.program import compile_program

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

BATCH, SHAPE = 8, (32, 2)
TINY = 1e-8


class TinyLoss(Classification):
    """A loss whose gradients are zero in float16, as those of a mean over many pixels may be."""

    def compute_loss(self, *args, **kwargs):
        value, others = super().compute_loss(*args, **kwargs)
        return TINY * value, others


@functools.cache
def compiled(dtype):
    """Compiles a program whose loss scale changes, and whose learning rate makes up for the loss."""
    config = change(
        base.get_config("digits"),
        {
            "model.network": "net2",
            "model.dropout": 0.0,
            "series.features": 8,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 0.1 / TINY,
            "batch_size": BATCH,
            "dtype": dtype,
            "loss_scale.grow_every": 2,
        },
    )
    example = {"inputs": np.zeros(SHAPE, np.float32), "label": np.int32(0)}
    steps = StepCounts(per_epoch=10, total=100, annealing=20, auxiliary_ramp=0)
    return compile_program(config, TinyLoss(config), 3, steps, example, example)


def batch():
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.normal(size=(BATCH, *SHAPE)).astype(np.float32),
        "label": rng.integers(0, 3, BATCH).astype(np.int32),
    }


def take_steps(dtype, factor, number=1):
    """Returns the first parameters, the state after some steps, and the factor in each step."""
    program = compiled(dtype)
    state = program.create_state(0)
    before = jax.device_get(state.params)
    scale = jax.device_put(make_loss_scale(factor), state.failed.sharding)
    state, factors = state.replace(loss_scale=scale), []
    for _ in range(number):
        state, metrics = program.train_step(state, program.shard_batch(batch()))
        factors.append(float(metrics["loss_scale"]))
    return before, state, factors


def updates(dtype, factor):
    before, state, _ = take_steps(dtype, factor)
    differences = jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(differences)])


def test_it_keeps_gradients_that_float16_would_round_to_zero():
    exact = updates("float32", 1.0)
    lost, kept = (updates("float16", factor) for factor in (1.0, 2.0**22))
    # Without a factor, nothing before the first product in float16 learns.
    assert np.mean(lost == 0) > 0.5 and np.mean(kept == 0) < 0.1
    assert np.linalg.norm(kept - exact) < 0.02 * np.linalg.norm(exact)


def test_steps_that_overflow_are_skipped_until_the_factor_is_small_enough():
    before, state, factors = take_steps("float16", 2.0**60, number=4)
    assert factors == [2.0**60, 2.0**59, 2.0**58, 2.0**57]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
    assert int(state.step) == 4 and not bool(state.failed)
    _, state, factors = take_steps("float16", 2.0**60, number=60)
    assert not bool(state.failed) and bool(all_finite(state.params))
    # It finds the largest power of two that works, tries the next now and then, and comes back.
    assert set(np.diff(np.log2(factors[-10:]))) == {-1.0, 0.0, 1.0}
    assert max(factors[-10:]) < 2.0**60
