"""Promises of all layers in other dtypes, and with statistics and temperatures set by hand."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import (
    CONVOLUTIONS,
    LAYERS,
    assert_trees_close,
    compiled_case,
    init_shapes,
    random_input,
)

from dyn.schedules import set_temperature

pytestmark = pytest.mark.matrix

# The layers between convolutions take their inputs in any dtype.
WITH_DTYPE = [name for name in LAYERS if hasattr(LAYERS[name].layer(), "dtype")]


@pytest.mark.parametrize("name", LAYERS)
def test_temperature_is_one_without_its_collection(name):
    layer, variables, x, apply, *_ = compiled_case(name)
    without = {key: value for key, value in variables.items() if key != "attention"}
    want = apply(set_temperature(variables, 1.0), x)
    np.testing.assert_allclose(apply(without, x), want, rtol=1e-5, atol=1e-6)
    # Also in training, where other collections are mutable.
    _, state = jax.eval_shape(partial(layer.apply, mutable=["batch_stats"]), without, x)
    assert set(state) == ({"batch_stats"} if LAYERS[name].statistics else set())


@pytest.mark.parametrize("name", [name for name, case in LAYERS.items() if case.statistics])
def test_statistics_are_used_exactly_when_they_are_mutable(name):
    layer, variables, x, apply, train, _ = compiled_case(name)
    inference, ((_, (y, state)), _) = apply(variables, x), train(variables, x)
    before, after = variables["batch_stats"], state["batch_stats"]
    if name == "SpectralNormConv":  # its statistics are its kernels' and not the batch's
        np.testing.assert_allclose(y, inference, rtol=1e-5, atol=1e-6)
        return
    assert np.abs(y - inference).max() > 1e-3
    for use_running_average, want, statistics in ((True, inference, before), (False, y, after)):
        forced = layer.copy(use_running_average=use_running_average)
        got, state = jax.jit(partial(forced.apply, mutable=["batch_stats"]))(variables, x)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert_trees_close(state["batch_stats"], statistics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch(name):
    layer, variables, x, *_ = compiled_case(name)
    y = jax.jit(layer.apply)(variables, x[:0])
    assert y.shape == (0, *jax.eval_shape(layer.apply, variables, x).shape[1:])


@functools.cache
def compile_sowing(name, dtype=None):
    """Compiles a layer in a dtype, with all that it sows."""
    layer = LAYERS[name].layer() if dtype is None else LAYERS[name].layer(dtype=dtype)
    return jax.jit(partial(layer.apply, mutable=["intermediates"]))


def all_float32(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)} <= {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((n, jnp.bfloat16) for n in WITH_DTYPE), ("ODConv", jnp.float16)]
)
def test_low_precision_is_for_the_convolution_only(name, dtype):
    layer, variables, x, *_ = compiled_case(name)
    low = layer.copy(dtype=dtype)
    low_x = x.astype(dtype)
    assert all_float32(init_shapes(low, low_x))  # parameters and statistics
    # From inputs of either dtype.
    assert jax.eval_shape(low.apply, variables, x).dtype == dtype
    y, state = compile_sowing(name, dtype)(variables, low_x)
    assert y.dtype == dtype
    want, exact = compile_sowing(name)(variables, low_x.astype(jnp.float32))
    # Attention has the precision of float32, because it is computed from the same numbers.
    attention, exact = state["intermediates"], exact["intermediates"]
    assert all_float32(attention)
    trees = (tree.get("attention", tree) for tree in (attention, exact))
    # SelectiveKernel's attention looks at what its paths have computed.
    rtol = 1e-2 if name == "SelectiveKernel" else 1e-4
    assert_trees_close(*trees, rtol=rtol, atol=1e-6)
    # bfloat16 has 8 bits: each of dozens of products is off by up to 2^-8, with signs at random.
    np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.03 * np.abs(want).max())


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_in_bfloat16_are_used_in_float32(name):
    case = LAYERS[name]
    fields = dict(dtype=jnp.float32) if name in WITH_DTYPE else {}
    layer, x = case.layer(param_dtype=jnp.bfloat16, **fields), random_input(*case.shape)
    shapes = init_shapes(layer, x)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes.pop("params"))}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    assert all_float32(shapes)  # statistics and temperature
    _, variables, _, apply, *_ = compiled_case(name)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), variables["params"])
    rounded = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    want = apply({**variables, "params": rounded}, x)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms
        got = jax.jit(layer.apply)({**variables, "params": params}, x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_integers_are_accepted_as_in_flax_conv(name):
    shape = LAYERS[name].shape
    picture = jnp.asarray(np.random.default_rng(0).integers(0, 9, shape), jnp.uint8)
    static = nn.Conv(6, (3, 3), dtype=jnp.float32)
    assert jax.eval_shape(static.init_with_output, jax.random.key(0), picture)
    layer = LAYERS[name].layer(dtype=jnp.float32)
    _, variables, _, apply, *_ = compiled_case(name)
    got = jax.jit(layer.apply)(variables, picture)
    want = apply(variables, picture.astype(jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
