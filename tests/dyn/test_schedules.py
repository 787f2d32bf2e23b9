"""The annealing of the temperature, and setting it in a model's variables."""

from functools import partial

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import init_shapes

from dyn.layers import ODConv, WarehouseConv
from dyn.models import Net2
from dyn.schedules import (
    linear_temperature,
    set_blend,
    set_temperature,
    two_slope_temperature,
)


def test_temperature_falls_linearly_to_one():
    # 1 + 29 (10 - step) / 10
    for step, temperature in [(0, 30.0), (1, 27.1), (9, 3.9), (10, 1.0), (11, 1.0), (10**6, 1.0)]:
        assert float(linear_temperature(step, 30, 10)) == pytest.approx(temperature, rel=1e-6)
    assert float(linear_temperature(0, 30.0, 0)) == 1.0


def test_temperature_falls_along_two_slopes():
    # max(30 - 2 e, 1 + e_0 / 2 - e / 2) with e_0 = 29 / 2, and not below a half.
    for epoch, temperature in [(0, 30.0), (13, 4.0), (14.2, 1.6), (15, 0.75), (99, 0.5)]:
        value = two_slope_temperature(epoch, 30.0, 2.0, 0.5, 0.5)
        assert float(value) == pytest.approx(temperature, rel=1e-5)


@pytest.fixture
def variables():
    shapes = init_shapes(
        Net2(num_classes=3, conv=partial(ODConv, num_kernels=2), norm=True), np.ones((2, 8, 1))
    )
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


def temperatures(variables):
    return [float(t) for t in jax.tree.leaves(variables["attention"])]


@pytest.mark.parametrize("value", [30, np.float64(30), jnp.float32(30), jnp.int32(30)])
def test_is_set_in_every_layer_and_nothing_else_changes(variables, value):
    changed = set_temperature(variables, value)
    assert temperatures(changed) == [30.0] * 2
    assert {t.dtype for t in jax.tree.leaves(changed["attention"])} == {jnp.dtype(jnp.float32)}
    assert temperatures(variables) == [1.0] * 2  # the argument is left alone
    assert jax.tree.structure(changed) == jax.tree.structure(variables)
    for collection in ("params", "batch_stats"):
        assert changed[collection] is variables[collection]


def test_only_the_temperatures_of_the_collection_attention_are_set():
    layer = {"temperature": jnp.ones(()), "seen": jnp.ones(3)}
    for attention in ({"layer": layer}, flax.core.freeze({"layer": layer})):
        changed = set_temperature({"attention": attention}, 2.0)["attention"]["layer"]
        assert float(changed["temperature"]) == 2.0
        np.testing.assert_array_equal(changed["seen"], 1.0)
    without = {"params": {"kernel": jnp.ones(3), "temperature": jnp.ones(())}}
    assert set_temperature(without, 2.0) == without


@pytest.mark.parametrize("lift", ["scan", "vmap"])
def test_stacked_layers_keep_shapes_and_dtypes(lift):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = ODConv(4, (3,), num_kernels=2)(x)
            return WarehouseConv(4, (3,))(x), None

    fields = dict(variable_axes={"params": 0, "attention": 0}, split_rngs={"params": True})
    if lift == "scan":
        blocks = nn.scan(Block, **fields, length=3)()
    else:
        blocks = nn.vmap(Block, **fields, in_axes=None, axis_size=3)()
    variables = init_shapes(blocks, np.ones((2, 8, 4), np.float32), None)
    stacked = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), variables)
    changed = set_blend(set_temperature(stacked, 30.0), 0.5)
    assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, stacked)
    values = sorted(np.asarray(leaf).tolist() for leaf in jax.tree.leaves(changed["attention"]))
    assert values == [[0.5] * 3, [30.0] * 3]


def test_temperature_may_be_traced_and_batched(variables):
    @jax.jit
    def anneal(step):
        return set_temperature(variables, linear_temperature(step, 30.0, 10))["attention"]

    for leaf in jax.tree.leaves(jax.vmap(anneal)(jnp.array([0, 5, 10]))):
        np.testing.assert_array_equal(leaf, [30.0, 15.5, 1.0])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), jnp.float32(0)])
def test_impossible_values_are_errors(value):
    with pytest.raises(ValueError, match="temperature must be positive"):
        set_temperature({}, value)
    with pytest.raises(ValueError, match="blend must be from 0 to 1"):
        set_blend({}, value - 0.5)
