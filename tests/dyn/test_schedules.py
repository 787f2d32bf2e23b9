"""The annealing of the temperature, and setting it in a model's variables."""

from functools import partial

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn.layers import ODConv
from dyn.models import BasicBlock, ResNet
from dyn.schedules import linear_temperature, set_temperature


@pytest.mark.parametrize(
    ("step", "temperature"),
    [(0, 30.0), (1, 27.1), (5, 15.5), (9, 3.9), (10, 1.0), (11, 1.0), (10**6, 1.0)],
)
def test_falls_from_its_start_to_one_and_stays(step, temperature):
    # 1 + 29 (10 - step) / 10
    assert float(linear_temperature(step, 30.0, 10)) == pytest.approx(temperature, rel=1e-6)


def test_no_steps_mean_one_at_once():
    assert float(linear_temperature(0, 30.0, 0)) == 1.0


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32, jnp.float32])
def test_step_may_be_traced(dtype):
    schedule = jax.jit(partial(linear_temperature, start=30.0, steps=10))
    got = schedule(jnp.asarray(5, dtype))
    assert got.dtype == jnp.float32 and got == 15.5


def test_start_may_be_a_whole_number():
    assert float(linear_temperature(5, 30, 10)) == 15.5


@pytest.fixture(scope="module")
def variables():
    net = ResNet(
        (1, 1),
        BasicBlock,
        num_classes=3,
        width=4,
        stem="small",
        conv=partial(ODConv, num_kernels=2),
    )
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((2, 8, 8, 3)))
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def temperatures(variables):
    return [float(t) for t in jax.tree.leaves(variables["attention"])]


@pytest.mark.parametrize("value", [30, 30.0, np.float64(30), jnp.float32(30), jnp.int32(30)])
def test_is_set_in_every_layer_and_nothing_else_changes(variables, value):
    changed = set_temperature(variables, value)
    assert temperatures(changed) == [30.0] * 4  # two blocks of two convolutions
    assert {t.dtype for t in jax.tree.leaves(changed["attention"])} == {jnp.dtype(jnp.float32)}
    assert temperatures(variables) == [1.0] * 4  # the argument is left alone
    assert jax.tree.structure(changed) == jax.tree.structure(variables)
    for collection in ("params", "batch_stats"):
        assert changed[collection] is variables[collection]


def test_other_variables_of_the_collection_are_left_alone():
    attention = {"layer": {"temperature": jnp.ones(()), "seen": jnp.ones(3)}}
    changed = set_temperature({"attention": attention}, 2.0)["attention"]["layer"]
    assert float(changed["temperature"]) == 2.0
    np.testing.assert_array_equal(changed["seen"], 1.0)


def test_variables_without_attention_are_returned_as_they_are():
    variables = {"params": {"kernel": jnp.ones(3), "temperature": jnp.ones(())}}
    assert set_temperature(variables, 2.0) == variables


def test_frozen_variables_are_taken():
    frozen = flax.core.freeze({"attention": {"layer": {"temperature": jnp.ones(())}}})
    assert float(set_temperature(frozen, 2.0)["attention"]["layer"]["temperature"]) == 2.0


def test_temperature_may_be_traced(variables):
    @jax.jit
    def annealed(step):
        return set_temperature(variables, linear_temperature(step, 30.0, 10))["attention"]

    assert jax.tree.leaves(annealed(5)) == [15.5] * 4
    together = jax.vmap(annealed)(jnp.array([0, 10]))
    for leaf in jax.tree.leaves(together):
        np.testing.assert_array_equal(leaf, [30.0, 1.0])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), jnp.float32(0)])
def test_a_temperature_that_is_not_positive_is_an_error(variables, value):
    with pytest.raises(ValueError, match="temperature must be positive"):
        set_temperature(variables, value)
