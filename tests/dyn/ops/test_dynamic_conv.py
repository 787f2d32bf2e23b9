"""Every lowering of `dynamic_conv` against a loop over samples; its errors and edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from convolution_cases import PORTABLE, assert_lowerings_agree, compute_lowerings, random_arrays
from layer_cases import assert_trees_close

from dyn.ops import dynamic_conv, explain, lowerings
from dyn.ops.geometry import resolve_geometry

# One case for each way through the lowerings; `test_dynamic_conv_matrix` has all, with gradients.
CASES = (
    "2d taps",
    "2d one kernel, taps",
    "2d same, strided, dilated",
    "2d input dilated",
    "2d circular",
    "2d fewer positions than features",
    "2d groups",
    "2d depthwise, multiplied",
    "2d pixel-wise, taps, groups",
    "1d causal",
)
WITH_GRADIENT = ("2d taps", "2d groups", "2d pixel-wise, taps, groups", "1d causal")


@pytest.mark.parametrize("name", CASES)
def test_every_lowering_is_the_loop_over_samples(name):
    """In float64, with gradients for some."""
    with jax.enable_x64(True):
        results = compute_lowerings(name, jnp.float64, gradients=name in WITH_GRADIENT)
        assert_lowerings_agree(results, jnp.float64, 1e-10)


def test_bfloat16_keeps_its_dtype_and_the_value():
    x, w, mix, _ = oracle.random_case(
        jax.random.key(0), jnp.float32, spatial=(6, 6), size=(3, 3), i=8, o=4, k=3
    )
    mix = jax.nn.softmax(mix)

    @jax.jit
    def compute(x):
        low = x.astype(jnp.bfloat16)
        return oracle.dynamic_conv(x, w, mix), [
            dynamic_conv(low, w, mix, lowering=lowering) for lowering in PORTABLE
        ]

    want, results = compute(x)
    for got in results:
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.25)


def test_many_taps_in_bfloat16_are_added_up_in_float32():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.random(s), jnp.bfloat16) for s in ((2, 9, 9, 4), (2, 7, 7, 4, 4)))
    mix = jnp.full((2, 2), 0.5)

    @jax.jit
    def compute(x, w):
        want = oracle.dynamic_conv(x.astype(jnp.float32), w.astype(jnp.float32), mix)
        return want, [dynamic_conv(x, w, mix, lowering=lowering) for lowering in PORTABLE]

    want, results = compute(x, w)
    for lowering, got in zip(PORTABLE, results, strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0.01, err_msg=lowering)


@pytest.mark.parametrize("lowering", ["outputs", "patches", "shared"])
def test_gradients_in_bfloat16_add_up_all_positions(lowering):
    """A sum over 2304 positions would stop growing at 256, if it were added up in bfloat16."""
    arrays = {
        "kernels": jnp.ones((1, 1, 1, 1, 2)),
        "mix": jnp.ones((1, 1)),
        "channels": jnp.ones((1, 2)),
        "filters": jnp.ones((1, 2)),
    }

    def loss(arrays):
        x = jnp.ones((1, 48, 48, 2), jnp.bfloat16)
        arrays = {**arrays, "kernels": arrays["kernels"].astype(x.dtype)}
        y = dynamic_conv(x, **arrays, feature_group_count=2, lowering=lowering)
        return jnp.sum(y.astype(jnp.float32))

    for name, gradient in jax.jit(jax.grad(loss))(arrays).items():
        want = 4608.0 if name == "mix" else 2304.0
        np.testing.assert_allclose(gradient.astype(jnp.float32), want, rtol=0.01, err_msg=name)


@pytest.mark.parametrize("name", ["2d taps", "2d fewer positions than features", "2d groups"])
def test_channels_and_filters_weigh_inputs_and_outputs(name, rng):
    """Also if the kernel is weighted instead, as by 'samples'."""
    with jax.enable_x64(True):
        x, w, *_ = random_arrays(name, jnp.float64)
        weights = [rng.normal(size=(len(x), n)) for n in (x.shape[-1], w.shape[-1])]
        results = compute_lowerings(name, jnp.float64, weights=weights)
        assert_lowerings_agree(results, jnp.float64, 1e-10)


def test_vmap_and_empty_outputs():
    x, w, mix = jnp.ones((2, 3, 5, 5, 2)), jnp.ones((2, 3, 3, 2, 4)), jnp.ones((2, 3, 2))

    @jax.jit
    def compute(x):
        mapped = [
            jax.vmap(partial(dynamic_conv, lowering=lowering), in_axes=(0, None, 0))(x, w, mix)
            for lowering in PORTABLE
        ]
        return dynamic_conv(x[1], w, mix[1]), mapped

    want, mapped = compute(x)
    for y in mapped:
        np.testing.assert_allclose(y[1], want, rtol=1e-6)
    for lowering in PORTABLE:
        y = dynamic_conv(x[0, :, :2], w, mix[0], padding="VALID", lowering=lowering)
        assert y.shape == (3, 0, 3, 4)


def test_auto_avoids_lowerings_that_cannot_do_the_case(capsys):
    x = jax.ShapeDtypeStruct((4, 8, 8, 4), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 3, 4, 4), jnp.float32)
    pixels = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    taps = jax.ShapeDtypeStruct((4, 3, 3), jnp.float32)
    for platform in ("cpu", "gpu", "tpu"):
        explain(x, w, pixels, taps=taps, platform=platform)
        printed = capsys.readouterr().out
        assert "-> shared" in printed and "pixel-wise" in printed and "prices:" in printed


INT = jnp.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mix=None), "mix is needed"),
        (dict(mix=jnp.ones((2, 4))), r"\(2, 3\)"),
        (dict(mix=jnp.ones((2, 3), INT)), "mix must be floating"),
        (dict(channels=jnp.ones((2, 4))), r"channels .*\(2, 2\)"),
        (dict(filters=jnp.ones((3, 4))), r"filters .*\(2, 4\)"),
        (dict(taps=jnp.ones((2, 9))), r"taps .*\(2, 3, 3\)"),
        (dict(taps=jnp.ones((2, 3, 3), INT)), "taps must be floating"),
        (dict(inputs=jnp.ones((2, 5, 5, 3))), "2 input features"),
        (dict(inputs=jnp.ones((2, 2))), "1 to 3"),
        (dict(inputs=jnp.ones((2, 5, 2))), "same number of spatial axes"),
        (dict(inputs=jnp.ones((2, 5, 5, 2), INT)), "inputs must be floating"),
        (dict(inputs=jnp.ones((2, 5, 5, 2), jnp.complex64)), "inputs must be floating"),
        (dict(kernels=jnp.ones((3, 3, 3, 2, 4), INT)), "kernels must be floating"),
        (dict(kernels=jnp.ones((3, 0, 3, 2, 4))), "positive"),
        (dict(kernels=jnp.ones((0, 3, 3, 2, 4)), mix=jnp.ones((2, 0))), "no kernel"),
        (dict(feature_group_count=0), "positive"),
        (dict(feature_group_count=-2), "positive"),
        (dict(strides=(1, 2, 3)), "strides"),
        (dict(strides=0), "positive"),
        (dict(strides=1.5), "strides=1.5"),
        (dict(strides="2"), "strides='2'"),
        (dict(kernel_dilation=-1), "kernel_dilation=-1"),
        (dict(padding="SAMME"), "unknown"),
        (dict(padding="CAUSAL"), "1-D"),
        (dict(padding=[1]), "1 entries"),
        (dict(padding=1.5), "padding=1.5"),
        (dict(padding=[(1, 2, 3), (1, 1)]), "a pair of them"),
        (dict(padding=[1.5, 1]), "a pair of them"),
        (dict(padding=None), "padding=None"),
        (dict(padding=-3), "crops"),
        (dict(padding="SAME", input_dilation=2), "ambiguous"),
        (dict(lowering="fast"), "unknown"),
        (dict(lowering="fused"), "for TPUs"),
        (dict(lowering="outputs", taps=jnp.ones((2, 3, 3))), "tap attention"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    good = dict(
        inputs=jnp.ones((2, 5, 5, 2)), kernels=jnp.ones((3, 3, 3, 2, 4)), mix=jnp.ones((2, 3))
    )
    with pytest.raises(ValueError, match=message):
        dynamic_conv(**{**good, **change})


def test_numpy_integers_are_accepted():
    x, w, two = jnp.ones((2, 5, 5, 2)), jnp.ones((1, 3, 3, 2, 4)), np.int64(2)
    y = dynamic_conv(x, w, strides=two, padding=two, kernel_dilation=(two, two))
    want = dynamic_conv(x, w, strides=2, padding=2, kernel_dilation=(2, 2))
    np.testing.assert_array_equal(y, want)


def test_samples_are_cut_into_equal_chunks_that_fit(monkeypatch, rng):
    geometry = resolve_geometry((4, 5), (3, 3))
    # Each sample has 20 x 9 x 2 numbers of patches and 54 of its kernel.
    for limit, number in ((1, 6), (4 * 1656, 2), (10**6, 1), (2 * 1656, 3)):
        monkeypatch.setattr(lowerings, "CHUNK_BYTES", limit)
        chunks = [lowerings.num_chunks(n, (3, 3, 2, 3), geometry, itemsize=4) for n in (6, 7, 0)]
        assert chunks[0] == number and chunks[1] in (1, 7) and chunks[2] == 1

    shapes = (6, 4, 5, 2), (3, 3, 3, 2, 3), (6, 3), (6, 3, 3)
    args = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)

    def loss(lowering):
        return lambda args: jnp.sum(lowering(*args, geometry, None) ** 3)

    in_chunks, at_once = jax.jit(
        lambda args: [
            jax.value_and_grad(loss(lowering))(args)
            for lowering in (lowerings.convolve_by_samples, lowerings.convolve_by_patches)
        ]
    )(args)
    assert_trees_close(in_chunks, at_once, rtol=1e-4, atol=1e-4)


def test_samples_keep_only_their_inputs_for_the_backward_pass():
    shapes = (16, 16, 16, 8), (4, 3, 3, 8, 8), (16, 4), (16, 3, 3)
    args = tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)

    def residuals(lowering):
        def convolve(x, w, mix, taps):
            return dynamic_conv(x, w, mix, taps=taps, lowering=lowering)

        kept = jax.eval_shape(lambda *args: jax.vjp(convolve, *args)[1], *args)
        return sum(leaf.size for leaf in jax.tree.leaves(kept))

    inputs = sum(a.size for a in args)
    assert residuals("samples") <= 1.1 * inputs
    assert residuals("patches") > 5 * inputs


def test_the_gradient_of_a_depthwise_kernel_takes_a_symbolic_batch():
    (batch,) = jax.export.symbolic_shape("b")
    shapes = [(batch, 6, 6, 4), (1, 3, 3, 1, 4), (batch, 1)]
    x, w, mix = (jax.ShapeDtypeStruct(one, jnp.float32) for one in shapes)

    def loss(x, w, mix):
        return jnp.sum(dynamic_conv(x, w, mix, feature_group_count=4) ** 2)

    exported = jax.export.export(jax.jit(jax.grad(loss, argnums=(0, 1, 2))))(x, w, mix)
    arrays = jnp.ones((5, 6, 6, 4)), jnp.ones((1, 3, 3, 1, 4)), jnp.ones((5, 1))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5),
        exported.call(*arrays),
        jax.grad(loss, argnums=(0, 1, 2))(*arrays),
    )


def test_a_symbolic_batch_is_cut_into_single_samples():
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 6, 6, 2), jnp.float32)
    mix = jax.ShapeDtypeStruct((batch, 3), jnp.float32)
    w = jnp.ones((3, 3, 3, 2, 4))
    function = jax.jit(lambda x, mix: dynamic_conv(x, w, mix, lowering="samples"))
    exported = jax.export.export(function)(x, mix)
    assert exported.call(jnp.ones((5, 6, 6, 2)), jnp.ones((5, 3))).shape == (5, 6, 6, 4)
