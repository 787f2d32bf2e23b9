"""Gradients of every lowering in every geometry, by the loop over samples and by finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from convolution_cases import CASES, arguments, random_arrays, supported_lowerings
from jax.test_util import check_grads

from dyn.ops import LOWERINGS, dynamic_conv

pytestmark = pytest.mark.matrix


@functools.cache
def gradients(name, dtype, weighed):
    """Returns values and gradients of the definition and of all lowerings of a case."""
    keywords, rng = arguments(CASES[name]), np.random.default_rng(0)
    pixelwise = CASES[name].get("mix") == "pixel"
    x, w, mix, taps = random_arrays(name, dtype)
    channels = filters = None
    if weighed:
        channels, filters = (
            jnp.asarray(rng.normal(size=(len(x), n)), dtype) for n in (x.shape[-1], w.shape[-1])
        )

    def over_space(weights, x):
        return weights.reshape(len(x), *(1,) * (x.ndim - 2), -1)

    def expected(x, w, mix, taps, channels, filters):
        if not weighed:
            return oracle.dynamic_conv(x, w, mix, taps, **keywords)
        named = {"taps": taps, "lowering": "shared" if pixelwise else "reference"}
        y = dynamic_conv(x * over_space(channels, x), w, mix, **named, **keywords)
        return y * over_space(filters, y)

    def lowered(lowering, x, w, mix, taps, channels, filters):
        named = {"taps": taps, "channels": channels, "filters": filters, "lowering": lowering}
        return dynamic_conv(x, w, mix, **named, **keywords)

    functions = {"definition": expected}
    functions |= {n: functools.partial(lowered, n) for n in ("auto", *supported_lowerings(name))}

    def loss(args, function):
        y = function(*args)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))), y

    @jax.jit
    def compute(args):
        return {n: jax.grad(loss, has_aux=True)(args, f) for n, f in functions.items()}

    return compute((x, w, mix, taps, channels, filters))


def assert_all_close(results, dtype, tolerance):
    want = results["definition"]
    for lowering, got in results.items():
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 10, err_msg=lowering)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_loop_over_samples(name):
    with jax.enable_x64(True):
        assert_all_close(gradients(name, jnp.float64, False), jnp.float64, 1e-10)


@pytest.mark.parametrize("name", ["2d taps", "2d groups", "2d pixel-wise"])
def test_gradients_in_float32(name):
    assert_all_close(gradients(name, jnp.float32, False), jnp.float32, 1e-4)


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
def test_gradients_with_weights_of_channels_and_filters(name):
    with jax.enable_x64(True):
        assert_all_close(gradients(name, jnp.float64, True), jnp.float64, 1e-9)


@pytest.mark.parametrize("lowering", LOWERINGS)
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
