"""Deformable convolution against published numbers and loops, its gradient, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.test_util import check_grads
from layer_cases import random_input, sines
from numpy_deform_conv import deform_conv as deform_by_loops

from dyn.ops import deform_aggregate, deform_conv


@pytest.mark.parametrize(
    ("size", "out", "runs", "groups", "masked", "geometry", "sums", "entries"),
    [
        (
            (3, 3), (5, 6), 1, 1, True, dict(padding=1),
            (141.2808153713, 143.9503238577),
            (0.47883983, 0.58499933, 0.49404569, 0.67187077, 0.14123568),
        ),
        (
            (3, 3), (3, 3), 2, 2, True, dict(padding=1, strides=2),
            (37.7570088275, 39.2062502123),
            (0.39498361, 0.5723738, 0.71980243, 0.60466287, 0.15609178),
        ),
        (
            (3, 2), (5, 7), 1, 1, False, dict(padding=1),
            (165.4949474886, 168.5422227555),
            (0.58830244, 0.74038586, 0.83847081, 0.82571587, 0.18282097),
        ),
        (
            (3, 3), (5, 6), 1, 1, True, dict(padding=2, kernel_dilation=2),
            (138.4898045945, 142.2663980772),
            (0.72666548, 0.81803394, 0.54222079, 0.39450045, 0.29336769),
        ),
    ],
    ids=["DCN2-A", "DCN2-B", "DCN2-C", "DCN2-D"],
)  # fmt: skip
def test_published_parity_vectors(size, out, runs, groups, masked, geometry, sums, entries):
    taps = size[0] * size[1]
    x = sines((2, 4, 5, 6), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    kernel = sines((6, 4 // groups, *size), 0.7).transpose(2, 3, 1, 0)
    # torchvision's channels are offset groups, taps, and (y, x).
    offsets = sines((2, 2 * runs * taps, *out), 0.3, 1.7).reshape(2, runs, taps, 2, *out)
    mask = 1 / (1 + np.exp(-sines((2, runs * taps, *out), 0.5, 2))).reshape(2, runs, taps, *out)
    offsets, mask = offsets.transpose(0, 4, 5, 1, 2, 3), mask.transpose(0, 3, 4, 1, 2)
    run = jax.jit(partial(deform_conv, feature_group_count=groups, **geometry))
    with jax.enable_x64(True):
        arrays = (x, kernel, offsets, mask if masked else None)
        y = np.asarray(run(*jax.tree.map(jnp.asarray, arrays))) + sines((6,), 0.9)
    y = y.transpose(0, 3, 1, 2).ravel()
    np.testing.assert_allclose((y.sum(), np.abs(y).sum()), sums, rtol=0, atol=1e-10)
    np.testing.assert_allclose((*y[:4], y[-1]), entries, rtol=0, atol=6e-9)


@pytest.mark.parametrize(
    ("out", "points", "geometry", "sums", "entries"),
    [
        (
            (5, 6), 9, dict(padding=1),
            (-0.7497772095, 49.0920891509),
            (-0.08372771, -0.08548127, -0.08273276, -0.07562696, -0.07205955),
        ),
        (
            (3, 3), 8, dict(padding=1, strides=2, offset_scale=0.7, remove_center=True),
            (0.2732604745, 24.5149241224),
            (-0.18725113, -0.13352962, -0.07277548, -0.00818846, 0.34561819),
        ),
        (
            (5, 6), 9, dict(padding=2, kernel_dilation=2),
            (3.4603294058, 26.7861907374),
            (0.04843898, 0.05999578, 0.06839277, 0.0731877, 0.08581592),
        ),
    ],
    ids=["DCN3-A", "DCN3-B", "DCN3-C"],
)  # fmt: skip
def test_published_parity_vectors_of_the_aggregation(out, points, geometry, sums, entries):
    values = sines((2, 5, 6, 8), 0.05, 1.0, 0.23)
    offsets = sines((2, *out, 4 * points), 0.3, 1.3).reshape(2, *out, 2, points, 2)
    mask = np.exp(sines((2, *out, 2, points), 0.5, 2))
    mask /= mask.sum(-1, keepdims=True)
    with jax.enable_x64(True):
        run = jax.jit(partial(deform_aggregate, kernel_size=(3, 3), **geometry))
        y = np.asarray(run(*map(jnp.asarray, (values, offsets, mask)))).ravel()
    np.testing.assert_allclose((y.sum(), np.abs(y).sum()), sums, rtol=0, atol=1e-10)
    np.testing.assert_allclose((*y[:4], y[-1]), entries, rtol=0, atol=6e-9)


def test_values_fade_over_one_pixel_at_the_border():
    x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((1, 1, 1, 1))
    for dy, rows in ((-1.5, (0, 0.5, 1)), (-2, (0, 0, 1)), (1.5, (1, 0.5, 0)), (9e9, (0, 0, 0))):
        offsets = jnp.zeros((1, 3, 3, 1, 1, 2)).at[..., 0].set(dy)
        np.testing.assert_array_equal(deform_conv(x, kernel, offsets)[0, :, 1, 0], rows)


GEOMETRIES = {
    "1d causal": ((7,), (3,), dict(padding="CAUSAL", kernel_dilation=2)),
    "2d": ((5, 4), (3, 2), dict(strides=(2, 1), padding=((0, 2), (1, 0)))),
    "3d": ((3, 4, 3), (2, 1, 2), dict(padding="VALID")),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_follows_the_formula(name):
    spatial, size, geometry = GEOMETRIES[name]
    taps, rank = int(np.prod(size)), len(size)
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((2, *spatial, 4)), random.standard_normal((*size, 2, 6))
    run = partial(deform_conv, feature_group_count=2, **geometry)
    plain = partial(oracle.convolve, feature_group_count=2, **geometry)
    out = jax.eval_shape(plain, x[0], kernel).shape[:-1]
    offsets = 1.5 * random.standard_normal((2, *out, 2, taps, rank))
    mask = random.standard_normal((2, *out, 2, taps))
    with jax.enable_x64(True):
        y = jax.jit(run)(*map(jnp.asarray, (x, kernel, offsets, mask)))
    want = deform_by_loops(x, kernel, offsets, mask, groups=2, **geometry)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "geometry",
    [
        dict(padding="CIRCULAR"),
        dict(padding="REFLECT", kernel_dilation=2, strides=2),
        dict(padding=((1, 1), (0, 3)), input_dilation=(2, 3), strides=2),
        dict(padding="SAME_LOWER", strides=2),
    ],
)
def test_without_offsets_it_is_a_convolution(geometry):
    x, kernel = random_input(2, 6, 5, 4), random_input(3, 2, 4, 6, seed=2)
    want = jnp.stack([oracle.convolve(one, kernel, **geometry) for one in x])
    offsets = jnp.zeros((*want.shape[:-1], 1, 6, 2))
    y = jax.jit(partial(deform_conv, **geometry))(x, kernel, offsets)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_gradients_by_finite_differences():
    with jax.enable_x64(True):
        x, kernel = (
            random_input(2, 4, 3, 2, dtype=np.float64),
            random_input(2, 3, 1, 4, dtype=np.float64),
        )
        random = np.random.default_rng(5)
        # Away from whole numbers, where the interpolation has kinks; some lie beyond the edges.
        offsets = random.integers(-2, 3, (2, 2, 3, 2, 6, 2)) + random.uniform(
            0.1, 0.9, (2, 2, 3, 2, 6, 2)
        )
        mask = random.standard_normal(offsets.shape[:-1])
        run = jax.jit(partial(deform_conv, strides=(2, 1), feature_group_count=2))
        check_grads(
            run, (x, kernel, jnp.asarray(offsets), jnp.asarray(mask)), 1, ["rev"], rtol=1e-6
        )


def test_what_is_sampled_for_all_taps_is_never_in_memory_at_once():
    """Neither in the forward pass nor for the gradient, which keeps the offsets and the inputs."""

    def measure(size):
        x, kernel = random_input(2, 32, 32, 64), random_input(size, size, 64, 8)
        offsets = jnp.zeros((2, 32, 32, 1, size**2, 2))
        gradient = jax.grad(lambda *arrays: jnp.sum(deform_conv(*arrays) ** 2), (0, 1, 2))
        compiled = jax.jit(gradient).lower(x, kernel, offsets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sample = 2 * 32 * 32 * 64 * 4
    assert measure(6) - measure(2) < 5 * sample  # 32 taps more


def test_what_does_not_fit_is_refused():
    x, kernel = jnp.ones((2, 5, 4, 4)), jnp.ones((3, 3, 4, 6))
    offsets = jnp.zeros((2, 5, 4, 1, 9, 2))
    for arrays, message in (
        ((x, kernel[:, :, :3], offsets), "kernel of shape"),
        ((x, kernel, offsets[..., :8, :]), "9 kernel positions"),
        ((x, kernel, jnp.zeros((2, 5, 4, 3, 9, 2))), "divide the 4"),
        ((x, kernel, offsets, jnp.ones((2, 5, 4, 1, 8))), "mask must"),
        ((x.astype(jnp.int32), kernel, offsets), "floating point; got int32"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(deform_conv, *arrays)
    run = partial(deform_aggregate, kernel_size=(3, 2))
    offsets = jnp.zeros((2, 5, 4, 1, 6, 2))
    for fields, message in (
        (dict(remove_center=True), "no middle"),
        (dict(padding="CIRCULAR"), "repeats inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(run, **fields), x, offsets, offsets[..., 0])
    with pytest.raises(ValueError, match="floating point; got int32"):
        jax.eval_shape(run, x.astype(jnp.int32), offsets, offsets[..., 0])
