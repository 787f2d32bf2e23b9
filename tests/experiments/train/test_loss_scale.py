"""Gradients of half precision: what loss scaling keeps, and how it finds its factor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import common
from experiments.data import Dataset
from experiments.tasks.classification import Classification
from experiments.train import program
from experiments.train.loss_scale import all_finite, next_scale, start_scale
from experiments.train.optimizer import Lengths

BATCH, SHAPE = 8, (32, 2)
TINY = 1e-8


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Optax does not pass the strict one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class TinyLoss(Classification):
    """So small that its gradients are zero in float16, as those of a mean over many pixels may be."""

    def compute_loss(self, *args, **kwargs):
        value, others = super().compute_loss(*args, **kwargs)
        return TINY * value, others


@functools.cache
def built(dtype):
    """A program whose loss scale halves and doubles, and whose learning rate makes up for the loss."""
    config = common.get_config("digits")
    changes = {
        "model.network": "net2",
        "model.dropout": 0.0,
        "series.features": 8,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.1 / TINY,
        "batch_size": BATCH,
        "dtype": dtype,
        "loss_scale.grow_every": 2,
    }
    config.update_from_flattened_dict(changes)
    example = {"inputs": np.zeros(SHAPE, np.float32), "label": np.int32(0)}
    dataset = Dataset("random", {}, ("a", "b", "c"), SHAPE)
    lengths = Lengths(epoch=10, total=100, annealing=20, ramp=0)
    task = TinyLoss(config)
    return program.build(config, task, dataset, lengths, example, example)


def batch():
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.normal(size=(BATCH, *SHAPE)).astype(np.float32),
        "label": rng.integers(0, 3, BATCH).astype(np.int32),
    }


def after_steps(dtype, factor, steps=1):
    """The parameters a run begins with, the state after some steps, and the loss scale in each."""
    built_program = built(dtype)
    state = built_program.create(0)
    before = jax.device_get(state.params)
    scale = jax.device_put(start_scale(factor), state.failed.sharding)
    state = state.replace(loss_scale=scale)
    factors = []
    for _ in range(steps):
        state, metrics = built_program.train_step(state, built_program.put(batch()))
        factors.append(float(metrics["loss_scale"]))
    return before, state, factors


def moved(dtype, factor):
    before, state, _ = after_steps(dtype, factor)
    difference = jax.tree.map(lambda new, old: np.asarray(new) - old, state.params, before)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(difference)])


def test_in_float32_the_gradients_are_the_same_bit_for_bit():
    np.testing.assert_array_equal(moved("float32", 1024.0), moved("float32", 1.0))
    assert np.abs(moved("float32", 1.0)).max() > 1e-3


def test_in_float16_scaling_keeps_gradients_that_would_be_zero():
    exact = moved("float32", 1.0)
    lost = moved("float16", 1.0)
    kept = moved("float16", 2.0**22)
    # Without it, what is behind the first product in float16 does not learn.
    assert np.mean(lost == 0) > 0.5 and np.mean(kept == 0) < 0.1
    assert np.linalg.norm(kept - exact) < 0.02 * np.linalg.norm(exact)


def test_gradients_that_overflow_are_left_out_and_the_scale_halves_until_they_do_not():
    before, state, factors = after_steps("float16", 2.0**60, steps=4)
    assert factors == [2.0**60, 2.0**59, 2.0**58, 2.0**57]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
    assert int(state.step) == 4 and not bool(state.failed)
    _, state, factors = after_steps("float16", 2.0**60, steps=60)
    assert not bool(state.failed) and bool(all_finite(state.params))
    # It finds the largest power of two that works, tries the next now and then, and comes back.
    assert set(np.diff(np.log2(factors[-10:]))) == {-1.0, 0.0, 1.0}
    assert max(factors[-10:]) < 2.0**60


def test_gradients_that_overflow_without_any_scale_fail():
    _, state, _ = after_steps("float16", 1.0)
    program_ = built("float16")
    broken = batch()
    broken["inputs"][0, 0] = np.inf
    held = jax.device_get(state.params)
    for given in (broken, batch(), batch()):
        state, _ = program_.train_step(state, program_.put(given))
    # Nothing has changed since, whatever came behind.
    assert bool(state.failed) and int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), held)


def test_the_scale_grows_after_some_finite_steps_and_never_falls_below_one():
    scale, finite = start_scale(1.5), jnp.bool_(True)
    factors = []
    for ok in (True, True, True, False, True, False, False, True):
        scale = next_scale(scale, finite & ok, grow_every=3)
        factors.append(float(scale.factor))
    assert factors == [1.5, 1.5, 3.0, 1.5, 1.5, 1.0, 1.0, 1.0]
    assert next_scale(scale, ~finite, grow_every=0) == scale
