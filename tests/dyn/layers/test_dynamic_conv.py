"""DynamicConv against published numbers and `nn.Conv`."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_published, filled, random_input, sines

from dyn.layers.dynamic_conv import DynamicConv

# Parity with a re-implementation, by numbers published with the formulas: all arrays are sines.


def test_published_parity_vector():
    # The published code squeezes 4 channels to int(4 / 4) + 1.
    layer = DynamicConv(6, (3, 3), padding=1, num_kernels=4, min_squeeze=2, param_dtype=jnp.float64)
    x = sines((2, 4, 5, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    variables = {
        "params": {
            "kernel": sines((4, 6, 4, 3, 3), 0.7).transpose(0, 3, 4, 2, 1),
            "bias": sines((4, 6), 0.9),
            "attention": {
                "squeeze": {"kernel": sines((2, 4), 0.1).T},
                "kernel": {"kernel": sines((4, 2), 1.0, 3.0).T, "bias": sines((4,), 2.0)},
            },
        },
        "attention": {"attention": {"temperature": np.asarray(31.0)}},
    }
    sums = (27.8582934094, 46.1700000166)
    entries = (0.03852808, 0.05438972, 0.08794548, 0.1230944, -0.03931489)
    assert_published(layer, variables, x, sums, entries)


def test_one_kernel_is_a_static_convolution():
    x = random_input(3, 5, 5, 4)
    layer = DynamicConv(6, (3, 3), num_kernels=1)
    variables = filled(layer, x)
    assert set(variables) == {"params"} and set(variables["params"]) == {"kernel", "bias"}
    static = {name: value[0] for name, value in variables["params"].items()}
    want = nn.Conv(6, (3, 3)).apply({"params": static}, x)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), want, rtol=1e-4, atol=1e-5)


# Parameters.


def test_every_candidate_starts_like_a_single_kernel():
    """Normal with variance 2 / fan_out; biases zero."""
    size = (3, 2)
    x = jnp.ones((2, *size, 64))
    layer = DynamicConv(96, size, num_kernels=3)
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    std = np.sqrt(2 / (96 * math.prod(size)))
    for candidate in params["kernel"]:
        assert np.std(candidate) == pytest.approx(std, rel=0.05)
        assert np.mean(candidate) == pytest.approx(0, abs=0.05 * std)
    assert not np.array_equal(params["kernel"][0], params["kernel"][1])
    np.testing.assert_array_equal(params["bias"], np.zeros((3, 96)))
