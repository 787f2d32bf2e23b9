"""Depthwise convolutions against plain loops, and all their derivatives against those of the plain sum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from jax.test_util import check_grads

from dyn.ops import depthwise
from dyn.ops.geometry import resolve_geometry

CASES = {
    "plain": ((6, 5), (3, 3), {}, True),
    "strided, kernels of samples": ((6, 5), (3, 2), {"strides": 2, "padding": "VALID"}, False),
    "dilated series": ((7,), (3,), {"strides": 2, "padding": [(2, 4)], "kernel_dilation": 2}, True),
    "dilated input": (
        *((5, 6), (3, 3)),
        {"strides": 2, "padding": [(1, 2), (0, 3)], "input_dilation": 2},
        False,
    ),
    "stride and padding beyond the kernel": (
        *((6, 6), (2, 2)),
        {"strides": 3, "padding": [(3, 0), (0, 3)]},
        True,
    ),
    "volume": ((4, 3, 4), (3, 1, 2), {"strides": (1, 2, 1)}, True),
}
close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)


@pytest.fixture(params=CASES)
def case(request):
    """Yields the primitive and the plain sum as functions, their arguments in float64, and the geometry."""
    spatial, size, fields, shared = CASES[request.param]
    geometry = resolve_geometry(spatial, size, **fields, groups=4)
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal(shape)
        for shape in ((3, *spatial, 4), (1 if shared else 3, *size, 1, 4))
    )
    with jax.enable_x64(True):

        def convolve(x, w):
            return depthwise.convolve_depthwise(x, w, geometry)

        def add_up(x, w):
            return depthwise._add_taps(x, w.reshape(len(w), -1, 4), geometry=geometry)

        yield convolve, add_up, (jnp.asarray(x), jnp.asarray(w)), fields


def pull(function):
    """Returns the gradient of a number that is not linear in the result."""
    return jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))), (0, 1))


def test_it_is_a_plain_loop(case):
    convolve, _, (x, w), fields = case
    want = np.concatenate(
        [
            numpy_oracle.convolve(
                np.asarray(x[b : b + 1]),
                np.asarray(w[b % len(w)][None]),
                np.ones((1, 1)),
                **fields,
                feature_group_count=4,
            )
            for b in range(len(x))
        ]
    )
    close(jax.jit(convolve)(x, w), want)


def test_derivatives_of_first_and_second_order(case, monkeypatch):
    convolve, add_up, args, _ = case
    check_grads(convolve, args, order=2, modes=["fwd", "rev"], rtol=1e-5)
    jax.tree.map(close, jax.jit(pull(convolve))(*args), pull(add_up)(*args))

    def twice(function):
        return pull(lambda *args: jnp.concatenate([jnp.ravel(g) for g in pull(function)(*args)]))

    jax.tree.map(close, jax.jit(twice(convolve))(*args), jax.jit(twice(add_up))(*args))
    # A chunk for each sample.
    monkeypatch.setattr(depthwise, "CHUNK_BYTES", 1)
    jax.tree.map(close, jax.jit(pull(convolve))(*args), pull(add_up)(*args))


def test_it_can_be_mapped(case):
    convolve, add_up, (x, w), _ = case
    for axes in ((None, 0), (0, None), (0, 0)):
        args = [
            a if axis is None else jnp.stack([a, 2 * a])
            for a, axis in zip((x, w), axes, strict=True)
        ]
        one, other = (jax.jit(jax.vmap(pull(f), axes))(*args) for f in (convolve, add_up))
        jax.tree.map(close, one, other)


def test_bfloat16_is_added_up_in_float32():
    geometry = resolve_geometry((8, 8), (3, 3), groups=2)
    x, w = jnp.ones((2, 8, 8, 2), jnp.bfloat16), jnp.ones((1, 3, 3, 1, 4))
    y, pull = jax.vjp(lambda w: depthwise.convolve_depthwise(x, w, geometry), w)
    assert y.dtype == jnp.bfloat16 and y.shape == (2, 8, 8, 4)
    assert float(pull(jnp.ones_like(y))[0][0, 1, 1, 0, 0]) == 128
