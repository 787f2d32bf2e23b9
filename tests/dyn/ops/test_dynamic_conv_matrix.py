"""Gradients of every lowering in every geometry, by the loop over samples and by finite differences."""

import jax
import jax.numpy as jnp
import oracle
import pytest
from convolution_cases import (
    CASES,
    PORTABLE,
    assert_lowerings_agree,
    compute_lowerings,
    random_arrays,
)
from jax.test_util import check_grads

from dyn.ops import dynamic_conv

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_loop_over_samples(name):
    with jax.enable_x64(True):
        results = compute_lowerings(name, jnp.float64, gradients=True)
        assert_lowerings_agree(results, jnp.float64, 1e-10)


@pytest.mark.parametrize(
    "name",
    [
        "2d taps",
        "2d one kernel, taps",
        "2d one kernel, nothing",
        "2d strided",
        "2d circular",
        "2d fewer positions than features",  # its kernel is larger than inputs and outputs
        "2d groups",
        "2d depthwise",
        "2d pixel-wise",
        "1d causal",
    ],
)
def test_gradients_with_weights_of_channels_and_filters(name, rng):
    with jax.enable_x64(True):
        x, w, *_ = random_arrays(name, jnp.float64)
        weights = [rng.normal(size=(len(x), n)) for n in (x.shape[-1], w.shape[-1])]
        results = compute_lowerings(name, jnp.float64, gradients=True, weights=weights)
        assert_lowerings_agree(results, jnp.float64, 1e-10)


@pytest.mark.parametrize("lowering", PORTABLE)
def test_gradients_by_finite_differences(lowering):
    with jax.enable_x64(True):
        args = oracle.random_case(
            jax.random.key(0),
            jnp.float64,
            spatial=(4, 3),
            size=(3, 2),
            i=2,
            o=2,
            k=2,
            batch=2,
            taps=lowering != "outputs",
        )
        present = [a for a in args if a is not None]

        @jax.jit
        def function(x, w, mix, taps=None):
            return dynamic_conv(x, w, mix, taps=taps, strides=(2, 1), lowering=lowering)

        check_grads(function, present, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
