"""Schedules and optimizers as functions of steps and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import change

from experiments.configs import common, hard
from experiments.train.optimizer import (
    StepCounts,
    count_steps,
    make_optimizer,
    make_plateau,
    make_schedule,
)

STEPS = StepCounts(per_epoch=10, total=100, annealing=0, auxiliary_ramp=0)


def config_with(**changes):
    return change(common.get_config("tiny_imagenet"), changes)


def test_phases_are_counted_in_steps():
    config = config_with(
        batch_size=32,
        epochs=3,
        **{"conv.name": "gated", "temperature.epochs": 2, "auxiliary.epochs": 1},
    )
    assert count_steps(config, 100) == StepCounts(
        per_epoch=4, total=12, annealing=8, auxiliary_ramp=4
    )
    config.steps = 5
    assert count_steps(config, 100).total == 5


def test_the_learning_rate_is_constant_by_default():
    schedule = make_schedule(config_with(), STEPS)
    assert float(schedule(0)) == float(schedule(99)) == pytest.approx(1e-3)


def test_decades_fall_to_a_tenth_after_each_third():
    config = config_with(**{"optimizer.schedule": "decades"})
    schedule = make_schedule(
        config, StepCounts(per_epoch=2, total=6, annealing=0, auxiliary_ramp=0)
    )
    rates = [float(schedule(step)) for step in range(6)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


def test_cosine_grows_linearly_and_falls_to_a_thousandth():
    config = config_with(**{"optimizer.schedule": "cosine", "optimizer.warmup_epochs": 1.0})
    rates = [float(make_schedule(config, STEPS)(step)) for step in range(101)]
    np.testing.assert_allclose(rates[:10], 1e-3 * np.arange(1, 11) / 11, rtol=1e-5)
    want = 1e-3 * (0.001 + 0.999 * 0.5 * (1 + np.cos(np.pi * np.arange(91) / 90)))
    np.testing.assert_allclose(rates[10:], want, rtol=1e-4)


PARAMS = {
    "conv1": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "conv2": {
        "kernel": jnp.ones((2, 3, 3, 2, 2)),
        "attention": {"kernel": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    },
}


def moved(config):
    """Returns whether a step with equal gradients moves a parameter, by name."""
    with jax.numpy_dtype_promotion("standard"):
        optimizer = make_optimizer(config, make_schedule(config, STEPS))
        updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    return {"/".join(key.key for key in path): bool(leaf.any()) for path, leaf in leaves}


def test_all_parameters_learn_by_default():
    assert all(moved(config_with()).values())


def test_only_what_decides_the_gates_learns_while_they_are_adapted():
    config = hard.get_config()
    config.adapt_gates = True
    assert {path for path, learns in moved(config).items() if learns} == {
        "conv2/attention/kernel/kernel",
        "conv2/attention/kernel/bias",
    }


def test_frozen_kernels_are_the_candidates_of_dynamic_layers():
    still = {
        path for path, learns in moved(config_with(**{"start.freeze": True})).items() if not learns
    }
    assert still == {"conv2/kernel"}


def test_weight_decay_is_for_kernels():
    config = config_with(**{"optimizer.name": "sgd", "optimizer.weight_decay": 1.0})
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = make_optimizer(config, make_schedule(config, STEPS))
        updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    assert updates["conv1"]["kernel"].all() and not updates["conv1"]["bias"].any()


def test_the_norm_of_gradients_is_limited():
    config = config_with(
        **{"optimizer.name": "sgd", "optimizer.clip": 1.0, "optimizer.learning_rate": 1.0}
    )
    with jax.numpy_dtype_promotion("standard"):
        optimizer = make_optimizer(config, make_schedule(config, STEPS))
        large = jax.tree.map(lambda p: 100 * p, PARAMS)
        updates, _ = optimizer.update(large, optimizer.init(PARAMS), PARAMS)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(updates)))
    assert norm == pytest.approx(1.9, rel=1e-4)  # Nesterov: the gradient and 0.9 of it


def test_an_optimizer_that_is_reset_continues_like_a_new_one():
    changes = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1}
    changes |= {"init_from": "somewhere", "stages.head_epochs": 1, "stages.learning_rate": 0.5}
    config = config_with(**changes)
    steps = count_steps(config, 64)
    assert steps.head_only == steps.per_epoch == 2
    gradients = [jax.tree.map(lambda p, k=k: (1.0 + k) * p, PARAMS) for k in range(5)]

    def train(optimizer, gradients):
        found, state = [], optimizer.init(PARAMS)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, PARAMS)
            found.append(updates)
        return found

    with jax.numpy_dtype_promotion("standard"):
        got = train(
            make_optimizer(config, make_schedule(config, steps), steps.head_only), gradients
        )
        first = train(make_optimizer(config, lambda step: 1e-3), gradients[:2])
        second = train(make_optimizer(config, lambda step: 0.5), gradients[2:])
    for mine, wanted in zip(got, first + second, strict=True):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_without_a_trained_network_no_head_learns_alone():
    assert count_steps(config_with(**{"stages.head_epochs": 3}), 100).head_only == 0


@pytest.mark.parametrize(("schedule", "end"), [("plateau", 0.1), ("cosine", 1e-4)])
def test_the_rate_of_the_head_is_followed_by_the_schedule_of_everything(schedule, end):
    changes = {"optimizer.schedule": schedule, "optimizer.warmup_epochs": 1.0}
    config = config_with(**changes, **{"stages.learning_rate": 0.1})
    rates = make_schedule(config, dataclasses.replace(STEPS, head_only=40))
    assert float(rates(0)) == pytest.approx(1e-3 / 11)
    assert float(rates(10)) == float(rates(39)) == pytest.approx(1e-3)
    assert float(rates(40)) == pytest.approx(0.1)
    assert float(rates(100)) == pytest.approx(end)


def test_the_plateau_cuts_the_rate_once_the_loss_stays_and_not_below_its_minimum():
    config = config_with(**{"plateau.patience": 1, "plateau.min_learning_rate": 1e-5})
    plateau = make_plateau(config)
    with jax.numpy_dtype_promotion("standard"):
        state, scales = plateau.init(PARAMS), []
        for loss in (1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9):
            _, state = plateau.update({}, state, value=loss)
            scales.append(float(state.scale))
    assert scales[1] == 1 and scales[-1] == pytest.approx(1e-2)
    assert scales == sorted(scales, reverse=True)
