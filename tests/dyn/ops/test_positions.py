"""A kernel per position: against a loop over positions and taps, gradients, memory, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from layer_cases import random_input
from numpy_oracle import axis_reads, output_shape
from residuals import count_residuals

from dyn.diagnostics import count_macs
from dyn.ops import convolve_positions, platforms, positions

# Spatial shape, kernel size, channels, groups, and fields of the call.
CASES = {
    "2d": ((5, 4), (3, 3), 6, 2, dict(padding=1)),
    "2d strided, one group": ((6, 5), (3, 2), 3, 1, dict(strides=(2, 3))),
    "2d a group each": ((4, 4), (2, 3), 4, 4, dict(padding="VALID")),
    "2d dilated": ((7, 6), (3, 2), 4, 2, dict(kernel_dilation=(2, 3))),
    "2d input dilated, cropped": (
        (4, 5),
        (3, 3),
        4,
        2,
        dict(input_dilation=(2, 1), padding=((1, 2), (-1, 2)), strides=(2, 1)),
    ),
    "1d causal": ((7,), (3,), 4, 2, dict(padding="CAUSAL", strides=2)),
    "1d circular": ((6,), (4,), 4, 2, dict(padding="CIRCULAR")),
    "3d": ((3, 2, 3), (2, 1, 2), 2, 1, {}),
}


def expected(x, kernels, scale, shift, axes):
    """Loops over samples, positions and taps."""
    rank, groups = x.ndim - 2, kernels.shape[-1]
    size = kernels.shape[1 + rank : -1]
    reads = [axis_reads(n, k, **a) for n, k, a in zip(x.shape[1:-1], size, axes, strict=True)]
    y = np.zeros((len(x), *map(len, reads), x.shape[-1]))
    for b in range(len(x)):
        for position in np.ndindex(*y.shape[1:-1]):
            for tap in np.ndindex(*size):
                place = tuple(r[p][t] for r, p, t in zip(reads, position, tap, strict=True))
                if None in place:
                    continue
                kernel = np.repeat(kernels[(b, *position, *tap)], x.shape[-1] // groups)
                weights = kernel * scale[(b, *tap)] + shift[(b, *tap)]
                y[(b, *position)] += x[(b, *place)] * weights
    return y


def make_case(name):
    """Returns float64 arguments, the fields of a call, and the axes of the oracle."""
    spatial, size, channels, groups, fields = CASES[name]
    usual = dict(strides=1, padding="SAME", input_dilation=1, kernel_dilation=1)
    values = [
        (v,) * len(size) if isinstance(v, int | str) else v for v in (usual | fields).values()
    ]
    names = ("stride", "padding", "input_dilation", "kernel_dilation")
    axes = [dict(zip(names, axis, strict=True)) for axis in zip(*values, strict=True)]
    out = output_shape(spatial, size, axes)
    shapes = ((2, *spatial, channels), (2, *out, *size, groups), *[(2, *size, channels)] * 2)
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape) for shape in shapes], fields, axes


@pytest.mark.parametrize("name", CASES)
def test_is_a_sum_over_taps(name):
    (x, kernels, scale, shift), fields, axes = make_case(name)
    want = expected(x, kernels, scale, shift, axes)
    with jax.enable_x64(True):
        args = [jnp.asarray(a) for a in (x, kernels, scale, shift)]

        def convolve(x, kernels, scale, shift):
            return convolve_positions(x, kernels, scale=scale, shift=shift, **fields)

        np.testing.assert_allclose(jax.jit(convolve)(*args), want, rtol=0, atol=1e-12)
        check_grads(convolve, args, 1, ["rev"], atol=1e-6, rtol=1e-6)


def test_factors_are_optional():
    (x, kernels, scale, shift), fields, axes = make_case("2d")
    ones, zeros = np.ones_like(scale), np.zeros_like(shift)
    for given, whole in (
        ({}, (ones, zeros)),
        ({"scale": scale}, (scale, zeros)),
        ({"shift": shift}, (ones, shift)),
    ):
        want = expected(x, kernels, *whole, axes)
        got = convolve_positions(jnp.float32(x), jnp.float32(kernels), **given, **fields)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_loop_over_rows_and_repeats_by_products_compute_the_same(monkeypatch):
    """As on a TPU, for which `matrix` tests compile it."""
    (x, kernels, scale, _), fields, _ = make_case("2d dilated")
    args = [jnp.float32(a) for a in (x, kernels, scale)]

    def gradients(*args):
        def loss(x, kernels, scale):
            y = convolve_positions(x, kernels, scale=scale, **fields)
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, (0, 1, 2), has_aux=True)(*args)

    want = jax.jit(gradients)(*args)
    monkeypatch.setitem(positions.UNROLLED_TAPS, "tpu", 1)
    jax.clear_caches()
    with platforms.plan_for_platform("tpu"):
        got = jax.jit(gradients)(*args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_size_of_the_patches_is_kept_or_computed():
    x, kernels = random_input(2, 16, 16, 32), random_input(2, 16, 16, 5, 5, 1, seed=2)

    def loss(args):
        return jnp.sum(convolve_positions(*args) ** 2), None

    kept = count_residuals(loss, (x, kernels))
    assert (
        kept <= 2 * x.size + kernels.size
    )  # the arguments and the outputs, which the square keeps
    compiled = jax.jit(jax.grad(loss, has_aux=True)).lower((x, kernels)).compile()
    # A few inputs, padded to 20 x 20, and kernels.
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * x.nbytes + 3 * kernels.nbytes


def test_sums_are_taken_in_float32():
    x, kernels = jnp.ones((1, 600, 1), jnp.bfloat16), jnp.ones((1, 600, 3, 1), jnp.bfloat16)
    scale = jnp.ones((1, 3, 1))

    def loss(scale):
        return jnp.sum(convolve_positions(x, kernels, scale=scale).astype(jnp.float32))

    np.testing.assert_array_equal(jax.grad(loss)(scale).ravel(), [599, 600, 599])
    assert convolve_positions(x, kernels).dtype == jnp.bfloat16


def test_counts_a_multiply_add_for_each_tap():
    x, kernels = random_input(2, 6, 4, 8), random_input(2, 3, 2, 5, 5, 2)
    convolve = partial(convolve_positions, strides=2, padding=2)
    assert count_macs(convolve, x, kernels) == 2 * 3 * 2 * 8 * 25
    two = jnp.stack([x, x]), jnp.stack([kernels, kernels])
    assert count_macs(jax.vmap(convolve), *two) == 2 * 2 * 3 * 2 * 8 * 25
    assert count_macs(jax.checkpoint(convolve), x, kernels) == 2 * 3 * 2 * 8 * 25


def test_an_empty_batch():
    x, kernels = jnp.ones((0, 4, 2)), jnp.ones((0, 4, 3, 1))
    gradient = jax.grad(lambda *args: convolve_positions(*args).sum(), (0, 1))(x, kernels)
    assert [g.shape for g in gradient] == [x.shape, kernels.shape]


@pytest.mark.parametrize(
    ("kernels", "factors", "message"),
    [
        ((2, 4, 3, 1), {}, r"as many axes in out and in k"),
        ((2, 4, 5, 3, 3, 1), {}, r"\(2, 4, 4, 3, 3, 'G'\)"),
        ((2, 4, 4, 3, 3, 4), {}, r"4 groups, which must divide the 6 channels"),
        ((2, 4, 4, 3, 3, 2), {"scale": jnp.ones((2, 9, 6))}, r"scale must be .*\(2, 3, 3, 6\)"),
        ((2, 4, 4, 3, 3, 2), {"shift": jnp.ones((2, 3, 3, 2))}, r"shift must be"),
    ],
)
def test_what_does_not_fit_is_refused(kernels, factors, message):
    with pytest.raises(ValueError, match=message):
        convolve_positions(jnp.ones((2, 4, 4, 6)), jnp.ones(kernels), **factors)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="inputs must be floating point; got int32"):
        convolve_positions(jnp.ones((1, 4, 2), jnp.int32), jnp.full((1, 4, 3, 1), 0.5))
