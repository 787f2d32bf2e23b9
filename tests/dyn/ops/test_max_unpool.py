"""Max pooling with places, and unpooling, against plain loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dyn.ops import max_pool, max_pool_with_argmax, max_unpool

# Shape, window, stride, padding before and after.
CASES = {
    "overlapping": ((2, 8, 8, 3), (4, 4), (2, 2), (1, 1)),
    "overlapping, odd": ((1, 9, 7, 2), (4, 4), (2, 2), (1, 1)),
    "resnet": ((2, 6, 5, 2), (3, 3), (2, 2), (1, 1)),
    "no overlap": ((2, 6, 4, 3), (2, 2), (2, 2), (0, 0)),
    "1d": ((2, 11, 3), (4,), (2,), (1, 1)),
    "3d": ((1, 4, 5, 4, 2), (2, 3, 2), (2, 1, 2), (0, 1)),
    "holes": ((1, 7, 7, 1), (2, 2), (3, 3), (0, 0)),
}


def pooled_by_loops(x, size, strides, padding):
    """Values and places by the definition: the first largest of the inputs that a window sees."""
    batch, *spatial, channels = x.shape
    out = [(n + sum(padding) - k) // s + 1 for n, k, s in zip(spatial, size, strides, strict=True)]
    values = np.zeros((batch, *out, channels), x.dtype)
    places = np.zeros((batch, *out, channels), np.int64)
    for b, c in itertools.product(range(batch), range(channels)):
        for at in itertools.product(*map(range, out)):
            best, where = None, None
            for tap in itertools.product(*map(range, size)):
                place = [p * s + t - padding[0] for p, s, t in zip(at, strides, tap, strict=True)]
                if all(0 <= q < n for q, n in zip(place, spatial, strict=True)):
                    value = x[(b, *place, c)]
                    if best is None or value > best:
                        best, where = value, np.ravel_multi_index(place, spatial)
            values[(b, *at, c)], places[(b, *at, c)] = best, where
    return values, places


def unpooled_by_loops(values, places, shape, duplicates):
    batch, channels = values.shape[0], values.shape[-1]
    found = {}
    for at in np.ndindex(*values.shape):
        found.setdefault((at[0], places[at], at[-1]), []).append(values[at])
    y = np.zeros((batch, int(np.prod(shape)), channels), values.dtype)
    for at, several in found.items():
        y[at] = np.mean(several) if duplicates == "mean" else several[-1]
    return y.reshape(batch, *shape, channels)


@pytest.mark.parametrize("case", CASES)
def test_values_and_places_are_those_of_plain_loops(rng, case):
    shape, size, strides, padding = CASES[case]
    pairs = [padding] * len(size)

    @jax.jit
    def pool(x):
        return max_pool_with_argmax(x, size, strides, pairs), max_pool(x, size, strides, pairs)

    for numbers in (rng.integers(-2, 2, shape), rng.normal(size=shape)):  # with ties, and without
        x = numbers.astype(np.float32)
        (values, places), without_places = pool(x)
        expected_values, expected_places = pooled_by_loops(x, size, strides, padding)
        np.testing.assert_array_equal(values, expected_values)
        np.testing.assert_array_equal(places, expected_places)
        assert places.dtype == jnp.int32
        np.testing.assert_array_equal(values, without_places)


@pytest.mark.parametrize("case", CASES)
def test_unpooling_is_that_of_plain_loops(rng, case):
    shape, size, strides, padding = CASES[case]
    _, places = pooled_by_loops(rng.normal(size=shape), size, strides, padding)
    values = rng.normal(size=places.shape).astype(np.float32)
    spatial = shape[1:-1]

    @jax.jit
    def unpool(v, p):
        return {how: max_unpool(v, p, spatial, how) for how in ("mean", "set")}

    for duplicates, y in unpool(values, places.astype(np.int32)).items():
        expected = unpooled_by_loops(values, places, spatial, duplicates)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        assert y.dtype == jnp.float32 and y.shape == shape


def test_gradients_by_finite_differences(rng):
    shape = (1, 5, 4, 1)
    rank = len(shape) - 2
    with jax.enable_x64(True):
        # Far enough apart for small differences not to change which is the largest.
        x = jnp.asarray(rng.permutation(int(np.prod(shape))).reshape(shape) / 7.0, jnp.float64)
        pool = jax.jit(lambda x: max_pool_with_argmax(x, (4,) * rank, 2, 1))
        check_grads(lambda x: pool(x)[0], (x,), order=1)
        _, places = pool(x)
        values = jnp.asarray(rng.normal(size=places.shape))
        for duplicates in ("mean", "set"):
            unpool = jax.jit(lambda v, how=duplicates: max_unpool(v, places, shape[1:-1], how))
            check_grads(unpool, (values,), order=1)


def test_it_maps_over_another_axis(rng):
    x = jnp.asarray(rng.normal(size=(3, 2, 6, 6, 2)), jnp.float32)

    @jax.jit
    def there_and_back(x):
        return max_unpool(*max_pool_with_argmax(x, (4, 4), 2, 1), shape=(6, 6))

    expected = np.stack([there_and_back(sample) for sample in x])
    np.testing.assert_array_equal(jax.vmap(there_and_back)(x), expected)


def test_half_precision_keeps_its_dtype_and_means_of_many_are_exact():
    ones = jnp.ones((1, 300, 1), jnp.bfloat16)
    y = max_unpool(ones, jnp.zeros((1, 300, 1), jnp.int32), (2,))
    assert y.dtype == jnp.bfloat16
    assert y.ravel().tolist() == [1.0, 0.0]


def test_infinite_inputs_have_places_that_exist():
    x = jnp.full((1, 5, 5, 1), -jnp.inf)
    values, places = jax.jit(lambda x: max_pool_with_argmax(x, (4, 4), 2, 1))(x)
    expected_values, expected_places = pooled_by_loops(np.asarray(x), (4, 4), (2, 2), (1, 1))
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(places, expected_places)


def test_arguments_that_do_not_fit_are_refused():
    x = jnp.ones((1, 4, 4, 1))
    values, places = jnp.ones((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1), jnp.int32)
    with pytest.raises(ValueError, match="two places"):
        max_pool_with_argmax(x, (3, 3), 1, "CIRCULAR")
    with pytest.raises(ValueError, match="without inputs"):
        max_pool_with_argmax(x, (2, 2), 2, 2)
    with pytest.raises(ValueError, match="'mean' or 'set'"):
        max_unpool(values, places, (4, 4), "sum")
    with pytest.raises(ValueError, match="cannot be unpooled"):
        max_unpool(values, places, (4,))
    with pytest.raises(ValueError, match="must be integers"):
        max_unpool(values, values, (4, 4))
