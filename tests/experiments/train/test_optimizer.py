"""Schedules and optimizers as functions of steps and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from small_runs import change

from experiments.configs import common
from experiments.configs.shared.layers import CONVS
from experiments.configs.shared.overrides import has_setting
from experiments.configs.shared.settings import NOT_ATTENTIVE
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
    changes = {"conv.name": "gated", "temperature.epochs": 2, "auxiliary.epochs": 1}
    config = config_with(epochs=3, **changes)
    assert count_steps(config, 100) == StepCounts(4, total=12, annealing=8, auxiliary_ramp=4)
    config.steps = 5
    assert count_steps(config, 100).total == 5
    # Without a trained network no head learns alone.
    assert count_steps(config_with(**{"stages.head_epochs": 3}), 100).head_only == 0


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("plateau", [1e-3] * 6), ("decades", [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])],
)
def test_the_learning_rate_stays_or_falls_to_a_tenth_after_each_third(schedule, rates):
    steps = dataclasses.replace(STEPS, per_epoch=2, total=6)
    rate_of = make_schedule(config_with(**{"optimizer.schedule": schedule}), steps)
    np.testing.assert_allclose([float(rate_of(step)) for step in range(6)], rates, rtol=1e-5)


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
        "bias": jnp.ones((2, 2)),
        "attention": {"kernel": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    },
}


def first_updates(config, gradients=PARAMS):
    with jax.numpy_dtype_promotion("standard"):
        optimizer = make_optimizer(config, make_schedule(config, STEPS))
        return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[0]


GATES = {"conv2/attention/kernel/kernel", "conv2/attention/kernel/bias"}
ALL = GATES | {"conv1/kernel", "conv1/bias", "conv2/kernel", "conv2/bias"}


@pytest.mark.parametrize(
    ("changes", "learning"),
    [
        ({}, ALL),
        ({"conv.name": "gated", "adapt_gates": True}, GATES),
        ({"start.freeze": True}, ALL - {"conv2/kernel", "conv2/bias"}),
    ],
    ids=["everything", "gates", "all but the candidate kernels"],
)
def test_what_learns(changes, learning):
    updates = traverse_util.flatten_dict(first_updates(config_with(**changes)), sep="/")
    assert {name for name, leaf in updates.items() if leaf.any()} == learning


def test_attention_has_a_learning_rate_of_its_own():
    rate = {"conv.name": "odconv", "optimizer.attention_rate": 0.25}
    usual, slower = first_updates(config_with()), first_updates(config_with(**rate))
    ratios = traverse_util.flatten_dict(jax.tree.map(jnp.divide, slower, usual), sep="/")
    for name, ratio in ratios.items():
        np.testing.assert_allclose(ratio, 0.25 if name in GATES else 1, rtol=1e-6)
    # All layers with attention have the setting, and no others.
    for name in CONVS:
        path = "optimizer.attention_rate"
        assert has_setting(config_with(**{"conv.name": name}), path) == (name not in NOT_ATTENTIVE)


def test_weight_decay_is_for_kernels():
    config = config_with(**{"optimizer.name": "sgd", "optimizer.weight_decay": 1.0})
    updates = first_updates(config, jax.tree.map(jnp.zeros_like, PARAMS))
    for name in ("conv1", "conv2"):  # biases of candidates have two axes
        assert updates[name]["kernel"].all() and not updates[name]["bias"].any()


def test_the_norm_of_gradients_is_limited():
    changes = {"optimizer.name": "sgd", "optimizer.clip": 1.0, "optimizer.learning_rate": 1.0}
    updates = first_updates(config_with(**changes), jax.tree.map(lambda p: 100 * p, PARAMS))
    # Nesterov: the gradient and 0.9 of it.
    assert float(optax.tree.norm(updates)) == pytest.approx(1.9, rel=1e-4)


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
    plateau = make_plateau(config, count_steps(config, 100))
    with jax.numpy_dtype_promotion("standard"):
        state, scales = plateau.init(PARAMS), []
        for loss in (1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9):
            _, state = plateau.update({}, state, value=loss)
            scales.append(float(state.scale))
    assert scales[1] == 1 and scales[-1] == pytest.approx(1e-2)
    assert scales == sorted(scales, reverse=True)


def test_a_plateau_never_raises_the_rate():
    config = config_with(**{"optimizer.learning_rate": 1e-7, "plateau.patience": 1})
    plateau = make_plateau(config, count_steps(config, 100))
    with jax.numpy_dtype_promotion("standard"):
        state = plateau.init(PARAMS)
        for _ in range(4):
            _, state = plateau.update({}, state, value=1.0)
    assert float(state.scale) == 1


def test_the_minimum_of_a_plateau_is_that_of_the_rate_in_use():
    changes = {"optimizer.learning_rate": 1e-3, "stages.learning_rate": 1e-4, "plateau.patience": 1}
    config = config_with(**changes, **{"plateau.min_learning_rate": 1e-5})
    for head_only, least in ((0, 1e-2), (7, 1e-1)):
        steps = dataclasses.replace(count_steps(config, 100), head_only=head_only)
        plateau = make_plateau(config, steps)
        with jax.numpy_dtype_promotion("standard"):
            state = plateau.init(PARAMS)
            for _ in range(8):
                _, state = plateau.update({}, state, value=1.0)
        assert float(state.scale) == pytest.approx(least)
