"""Norms of inputs far from zero, against float64; `test_norms_matrix` has them inside every layer."""

import functools
import re
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input

import dyn
from dyn.layers import ODConv
from dyn.layers.norms import BatchNorm, LayerNorm
from dyn.models.backbone import make_batch_norm

MEANS, SPREADS = (0.0, 10.0, 293.0, 1e4), (0.05, 0.1, 0.5, 5.0)


def normalise(x, axis):
    """Normalises by definition, in float64."""
    x = np.asarray(x, np.float64)
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


@functools.cache
def compile_norm(name):
    make = {
        "batch": partial(BatchNorm, use_running_average=False),
        "backbone": make_batch_norm(True, None),
        "layer": LayerNorm,
    }[name]

    @jax.jit
    def apply(x):
        return make().init_with_output(jax.random.key(0), x)

    return apply


@pytest.mark.parametrize("name", ["batch", "backbone", "layer"])
def test_a_variance_is_exact_whatever_the_mean(name):
    axis = -1 if name == "layer" else 0
    for mean in MEANS:
        for spread in SPREADS:
            x = np.random.default_rng(0).standard_normal((32, 16))
            x = (mean + spread * x).astype(np.float32)
            y, variables = compile_norm(name)(x)
            # Float32 leaves this much of the mean itself.
            allowed = 1e-5 + 2**-22 * mean / spread
            np.testing.assert_allclose(y, normalise(x, axis), rtol=0, atol=allowed)
            assert ("batch_stats" in variables) == (name != "layer")


@pytest.mark.parametrize("name", ["batch", "layer"])
def test_half_precision_is_normalised_in_float32(name):
    axis = -1 if name == "layer" else 0
    for dtype in (jnp.float16, jnp.bfloat16):
        for size in (1e-6, 1.0, 6e4):
            x = np.clip(size * np.random.default_rng(0).standard_normal((32, 16)), -6e4, 6e4)
            x = jnp.asarray(x, dtype)
            y = np.asarray(compile_norm(name)(x)[0], np.float64)
            np.testing.assert_allclose(y, normalise(x, axis), rtol=0, atol=1e-5)


def test_attention_far_from_zero():
    """Mean 293 (kelvin, for example) and spread 0.5, where E[x^2] - E[x]^2 was off by 0.02."""
    layer = ODConv(6, (1, 1), num_kernels=2, attention_norm="batch")
    x, context = random_input(32, 1, 1, 4), 293 + 0.5 * random_input(32, 4, seed=2)
    variables = filled(layer, x, context)

    def compute_weights(variables, x, context):
        _, state = layer.apply(variables, x, context, mutable=["batch_stats", "intermediates"])
        return state["intermediates"]["attention"]["weights"][0]

    got = jax.jit(compute_weights)(variables, x, context)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (variables, x, context))
        want = jax.jit(compute_weights)(*wide)
    for name in got:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-3)


def test_every_norm_of_the_library_is_one_of_these():
    """Flax's own have the fast variance."""
    for path in Path(dyn.__file__).parent.rglob("*.py"):
        found = re.findall(r"\bnn\.\w*Norm\(", path.read_text(encoding="utf-8"))
        assert not found or path.name == "norms.py", (path, found)


# ---------------------------------------------------------------- statistics that nobody updates


def find_warnings(function, *args):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        jax.eval_shape(function, *args)
    return [str(warning.message) for warning in found if "attention" in str(warning.message)]


def test_training_without_updated_statistics_warns():
    layer, x = ODConv(4, (1, 1), attention_norm="batch"), random_input(4, 3, 3, 3)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def loss(params, x, layer=layer, **options):
        y = layer.apply({**variables, "params": params}, x, **options)
        return jnp.sum(y[0] if options else y)

    params = variables["params"]
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), variables)
    for gradient in (jax.grad(loss), jax.grad(jax.jit(loss))):
        (message,) = find_warnings(gradient, params, x)
        assert "mutable=['batch_stats']" in message and "attention_norm='layer'" in message
    # Evaluation, a saliency map, training as it should be, and statistics kept on purpose.
    assert not find_warnings(loss, params, x)
    assert not find_warnings(jax.grad(loss, argnums=1), params, x)
    assert not find_warnings(jax.grad(partial(loss, mutable=["batch_stats"])), params, x)
    kept = layer.copy(use_running_average=True)
    assert not find_warnings(jax.grad(partial(loss, layer=kept)), params, x)


def test_a_layer_norm_of_one_number_is_refused():
    """It is zero for every input."""
    layer = ODConv(4, (3, 3), min_squeeze=1)
    with pytest.raises(ValueError, match="min_squeeze=2"):
        jax.eval_shape(layer.init, jax.random.key(0), random_input(2, 5, 5, 3))
