"""Max pooling: flax's numbers and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dyn.ops.max_pool import max_pool
from dyn.ops.platforms import plan_for_platform

CASES = {
    "resnet": ((2, 9, 8, 3), (3, 3), 2, 1),
    "no overlap": ((2, 6, 6, 3), (2, 2), 2, 0),
    "1d": ((2, 11, 3), (3,), 2, 1),
    "3d": ((1, 5, 4, 6, 2), (3, 2, 3), 2, 1),
    "many places": ((1, 20, 20, 1), (12, 12), 1, "VALID"),
    "same": ((2, 7, 6, 3), (3, 3), 2, "SAME"),
}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in CASES), ("resnet", "bfloat16")]
)
def test_numbers_and_gradients_are_those_of_flax(rng, case, dtype, platform):
    shape, size, strides, padding = CASES[case]
    # Few values, after a ReLU, so that most windows have several maxima.
    x = jnp.asarray(np.maximum(rng.integers(-3, 4, shape), 0), dtype)
    pad = [(padding, padding)] * len(size) if isinstance(padding, int) else padding

    def theirs(x):
        return nn.max_pool(x, size, (strides,) * len(size), padding=pad)

    cotangent = jnp.asarray(rng.normal(size=jax.eval_shape(theirs, x).shape), dtype)

    @jax.jit
    def compute(x):
        expected, pull = jax.vjp(theirs, x)
        y, own_pull = jax.vjp(lambda x: max_pool(x, size, strides, padding), x)
        gradients = [p(cotangent)[0].astype(jnp.float32) for p in (own_pull, pull)]
        return y, expected, *gradients

    with plan_for_platform(platform):
        y, expected, gradient, wanted = compute(x)
    np.testing.assert_array_equal(y, expected)
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(gradient, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.matrix
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_it_differentiates_in_both_modes_and_twice(rng, platform):
    x = jnp.asarray(rng.permutation(2 * 6 * 5 * 2).reshape(2, 6, 5, 2), jnp.float32)
    pool = jax.jit(lambda x: max_pool(x, (3, 3), 2, 1) ** 2)
    with plan_for_platform(platform):
        check_grads(pool, (x,), order=2, eps=1e-2, rtol=1e-2)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_infinite_inputs_stay_what_they_are(platform):
    x = jnp.full((1, 4, 1), -jnp.inf).at[0, 3].set(1.0)
    with plan_for_platform(platform):
        # The last window has only padding.
        y, pull = jax.vjp(lambda x: max_pool(x, (2,), 1, [(1, 2)]), x)
        (gradient,) = pull(jnp.arange(1.0, 7.0).reshape(y.shape))
    np.testing.assert_array_equal(y.ravel(), [-np.inf, -np.inf, -np.inf, 1, 1, -np.inf])
    np.testing.assert_array_equal(gradient.ravel(), [2, 3, 0, 9])


@pytest.mark.parametrize(("platform", "expected"), [("cpu", [1, 2]), ("tpu", [np.nan, 2])])
def test_not_a_number(platform, expected):
    """XLA's operation passes it on, as flax does; the comparison of slices overlooks it."""
    x = jnp.array([1.0, jnp.nan, 0.0, 2.0]).reshape(1, 4, 1)
    with plan_for_platform(platform):
        np.testing.assert_array_equal(max_pool(x, (2,), 2, 0).ravel(), expected)
