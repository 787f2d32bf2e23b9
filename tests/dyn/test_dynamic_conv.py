"""Every lowering against the loop over samples, in value and gradient."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.test_util import check_grads

from dyn.ops import LOWERINGS, dynamic_conv, explain, lowerings
from dyn.ops.lowerings import unable
from dyn.ops.window import resolve

CASES = {
    "2d": dict(spatial=(5, 4), size=(3, 3), i=2, o=3, k=3),
    "2d taps": dict(spatial=(5, 4), size=(3, 3), i=2, o=3, k=3, taps=True),
    "2d one kernel, taps": dict(spatial=(5, 4), size=(3, 2), i=2, o=3, k=1, mix=None, taps=True),
    "2d one kernel, nothing": dict(spatial=(5, 4), size=(3, 3), i=2, o=3, k=1, mix=None),
    "2d one weighed kernel": dict(spatial=(5, 4), size=(3, 3), i=2, o=3, k=1),
    "2d pointwise": dict(spatial=(5, 4), size=(1, 1), i=2, o=3, k=2, taps=True),
    "2d strided": dict(spatial=(6, 5), size=(3, 3), i=2, o=3, k=2, taps=True, strides=(2, 3)),
    "2d valid, dilated": dict(
        spatial=(7, 6),
        size=(3, 2),
        i=2,
        o=3,
        k=2,
        taps=True,
        padding="VALID",
        kernel_dilation=(2, 3),
    ),
    "2d same, strided, dilated": dict(
        spatial=(7, 6), size=(3, 2), i=2, o=3, k=2, taps=True, strides=2, kernel_dilation=2
    ),
    "2d input dilated": dict(
        spatial=(4, 3),
        size=(3, 3),
        i=2,
        o=3,
        k=2,
        taps=True,
        input_dilation=(2, 3),
        padding=[(1, 1), (0, 3)],
        strides=2,
    ),
    "2d pairs": dict(
        spatial=(5, 4), size=(3, 3), i=2, o=3, k=2, taps=True, padding=[(0, 2), (3, 1)], strides=2
    ),
    "2d cropping": dict(
        spatial=(7, 6), size=(3, 3), i=2, o=3, k=2, taps=True, padding=[(-1, 1), (1, -2)]
    ),
    "2d number": dict(spatial=(5, 4), size=(3, 3), i=2, o=3, k=2, padding=2),
    "2d circular": dict(
        spatial=(5, 4), size=(3, 2), i=2, o=3, k=2, taps=True, padding="CIRCULAR", strides=2
    ),
    "2d reflect": dict(
        spatial=(5, 6), size=(3, 2), i=2, o=3, k=2, padding="REFLECT", kernel_dilation=2
    ),
    "2d fewer positions than features": dict(
        spatial=(2, 2), size=(3, 3), i=2, o=13, k=3, taps=True, strides=2
    ),
    "2d groups": dict(spatial=(5, 4), size=(3, 3), i=4, o=6, k=3, groups=2, taps=True),
    "2d depthwise": dict(spatial=(5, 4), size=(3, 3), i=4, o=4, k=3, groups=4, taps=True),
    "2d depthwise, multiplied": dict(
        spatial=(5, 4), size=(3, 3), i=3, o=6, k=2, groups=3, taps=True
    ),
    "2d depthwise, one kernel": dict(
        spatial=(5, 4), size=(3, 3), i=4, o=4, k=1, groups=4, mix=None, taps=True
    ),
    "2d pixel-wise": dict(spatial=(5, 4), size=(3, 3), i=2, o=3, k=3, mix="pixel", strides=2),
    "2d pixel-wise, taps, groups": dict(
        spatial=(5, 4), size=(3, 3), i=2, o=4, k=3, groups=2, mix="pixel", taps=True
    ),
    "1d causal": dict(
        spatial=(9,), size=(3,), i=2, o=3, k=2, taps=True, padding="CAUSAL", kernel_dilation=2
    ),
    "1d pixel-wise": dict(spatial=(6,), size=(3,), i=2, o=3, k=2, mix="pixel"),
    "1d same, even kernel": dict(spatial=(9,), size=(4,), i=2, o=3, k=2, strides=2),
    "3d": dict(spatial=(4, 3, 3), size=(2, 3, 2), i=2, o=3, k=2, taps=True, strides=(2, 1, 2)),
    "3d pixel-wise": dict(spatial=(2, 3, 2), size=(1, 2, 2), i=2, o=2, k=2, mix="pixel"),
}
DESCRIPTION = ("spatial", "size", "i", "o", "k", "groups", "batch", "taps", "mix")


def arguments(case):
    """The arguments of `dynamic_conv`, and of `nn.Conv`, that a case names."""
    window = {name: value for name, value in case.items() if name not in DESCRIPTION}
    return {**window, "feature_group_count": case.get("groups", 1)}


def value_and_gradients(function, args, cotangent):
    present = [a for a in args if a is not None]

    def scalar(*present):
        rest = iter(present)
        y = function(*(None if a is None else next(rest) for a in args))
        return jnp.sum(y * cotangent), y

    gradient = jax.grad(scalar, argnums=tuple(range(len(present))), has_aux=True)
    gradients, y = jax.jit(gradient)(*present)
    return y, *gradients


@functools.cache
def by_definition(name, dtype):
    """Arguments of a case, a cotangent, and the value and gradients that the loop gives."""
    args = oracle.random_case(jax.random.key(1), dtype, **CASES[name])

    def expected(x, w, mix, taps):
        return oracle.dynamic_conv(x, w, mix, taps, **arguments(CASES[name]))

    shape = jax.eval_shape(expected, *args).shape
    cotangent = jax.random.normal(jax.random.key(2), shape, dtype)
    return args, cotangent, value_and_gradients(expected, args, cotangent)


def compare(name, lowering, dtype, tolerance):
    case = CASES[name]
    if why := unable(
        lowering, pixelwise=case.get("mix") == "pixel", tap_attention=case.get("taps", False)
    ):
        assert len(why) > 20
        pytest.skip(why)
    args, cotangent, expected = by_definition(name, dtype)

    def actual(x, w, mix, taps):
        return dynamic_conv(x, w, mix, taps=taps, lowering=lowering, **arguments(case))

    for got, want in zip(value_and_gradients(actual, args, cotangent), expected, strict=True):
        assert got.dtype == want.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("lowering", [*LOWERINGS, "auto"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_loop_over_samples(name, lowering):
    with jax.enable_x64(True):
        compare(name, lowering, jnp.float64, 1e-10)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", ["2d taps", "2d groups", "2d pixel-wise"])
def test_equals_the_loop_over_samples_in_float32(name, lowering):
    compare(name, lowering, jnp.float32, 1e-4)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("taps", [False, True])
def test_gradients_by_finite_differences(lowering, taps):
    if unable(lowering, pixelwise=False, tap_attention=taps):
        pytest.skip("cannot do the case")
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
            taps=taps,
        )
        present = [a for a in args if a is not None]

        def function(x, w, mix, taps=None):
            return dynamic_conv(x, w, mix, taps=taps, strides=(2, 1), lowering=lowering)

        check_grads(function, present, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_bfloat16_keeps_its_dtype_and_the_value(lowering):
    x, w, mix, _ = oracle.random_case(
        jax.random.key(0), jnp.float32, spatial=(6, 6), size=(3, 3), i=8, o=4, k=3
    )
    mix = jax.nn.softmax(mix)
    want = oracle.dynamic_conv(x, w, mix)
    got = dynamic_conv(x.astype(jnp.bfloat16), w, mix, lowering=lowering)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.25)


def test_vmap_and_empty_output():
    x = jnp.ones((2, 3, 5, 5, 2))
    w = jnp.ones((2, 3, 3, 2, 4))
    mix = jnp.ones((2, 3, 2))
    for lowering in LOWERINGS:
        y = jax.vmap(partial(dynamic_conv, lowering=lowering), in_axes=(0, None, 0))(x, w, mix)
        np.testing.assert_allclose(y[1], dynamic_conv(x[1], w, mix[1]), rtol=1e-6)
        assert dynamic_conv(x[0, :, :2], w, mix[0], padding="VALID", lowering=lowering).shape == (
            3,
            0,
            3,
            4,
        )


def test_auto_never_takes_what_a_lowering_cannot_do(capsys):
    x = jax.ShapeDtypeStruct((4, 8, 8, 4), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 3, 4, 4), jnp.float32)
    pixels = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    taps = jax.ShapeDtypeStruct((4, 3, 3), jnp.float32)
    for platform in ("cpu", "gpu", "tpu"):
        explain(x, w, pixels, taps=taps, platform=platform)
        said = capsys.readouterr().out
        assert "-> shared" in said and "only outputs can be mixed" in said and "prices:" in said


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(
    "name",
    [
        "2d taps",
        "2d one kernel, taps",
        "2d one kernel, nothing",
        "2d strided",
        "2d circular",
        "2d fewer positions than features",  # whose kernel is larger than what it takes and gives
        "2d groups",
        "2d depthwise",
        "2d pixel-wise",
        "1d causal",
    ],
)
def test_weighed_channels_and_filters_are_weighed_inputs_and_outputs(name, lowering, rng):
    case = CASES[name]
    pixelwise = case.get("mix") == "pixel"
    if unable(lowering, pixelwise=pixelwise, tap_attention=case.get("taps", False)):
        pytest.skip("cannot do it")

    def over_space(weights, x):
        return weights.reshape(len(x), *(1,) * (x.ndim - 2), -1)

    def expected(x, w, mix, taps, channels, filters):
        named = {"taps": taps, "lowering": "shared" if pixelwise else "reference"}
        y = dynamic_conv(x * over_space(channels, x), w, mix, **named, **arguments(case))
        return y * over_space(filters, y)

    def found(x, w, mix, taps, channels, filters):
        named = {"taps": taps, "channels": channels, "filters": filters, "lowering": lowering}
        return dynamic_conv(x, w, mix, **named, **arguments(case))

    with jax.enable_x64(True):
        x, w, mix, taps = by_definition(name, jnp.float64)[0]
        weights = [jnp.asarray(rng.normal(size=(len(x), n))) for n in (x.shape[-1], w.shape[-1])]
        args = (x, w, mix, taps, *weights)
        cotangent = jnp.asarray(rng.normal(size=jax.eval_shape(expected, *args).shape))
        for mine, theirs in zip(
            value_and_gradients(found, args, cotangent),
            value_and_gradients(expected, args, cotangent),
            strict=True,
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mix=None), "mix is needed"),
        (dict(mix=jnp.ones((2, 4))), r"mix must be \[B, K\] = \(2, 3\)"),
        (dict(channels=jnp.ones((2, 4))), r"channels must have the shape \(2, 2\)"),
        (dict(filters=jnp.ones((3, 4))), r"filters must have the shape \(2, 4\)"),
        (dict(taps=jnp.ones((2, 9))), r"taps must be \[B, \*k\] = \(2, 3, 3\)"),
        (dict(inputs=jnp.ones((2, 5, 5, 3))), "take 2 input features"),
        (dict(inputs=jnp.ones((2, 2))), "1 to 3 spatial axes"),
        (dict(inputs=jnp.ones((2, 5, 2))), r"kernels must be \[K, \*k, I/G, O\]"),
        (dict(inputs=jnp.ones((2, 5, 5, 2), jnp.int32)), "floating point"),
        (dict(padding="SAMME"), "'SAMME' is unknown"),
        (dict(padding="CAUSAL"), "1-D"),
        (dict(padding=[1]), "1 entries for 2 spatial axes"),
        (dict(strides=(1, 2, 3)), "strides"),
        (dict(strides=0), "positive"),
        (dict(lowering="fast"), "'fast' is unknown"),
        (dict(lowering="outputs", taps=jnp.ones((2, 3, 3))), "tap attention"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    good = dict(
        inputs=jnp.ones((2, 5, 5, 2)), kernels=jnp.ones((3, 3, 3, 2, 4)), mix=jnp.ones((2, 3))
    )
    with pytest.raises(ValueError, match=message):
        dynamic_conv(**{**good, **change})


@pytest.mark.parametrize(("cache", "number"), [(1, 6), (2 * 1656, 3), (4 * 1656, 2), (10**6, 1)])
def test_samples_take_turns_that_a_cache_holds_and_that_cut_the_batch_evenly(
    monkeypatch, rng, cache, number
):
    monkeypatch.setattr(lowerings, "CACHE", cache)
    args = (rng.normal(size=s) for s in ((6, 4, 5, 2), (3, 3, 3, 2, 3), (6, 3), (6, 3, 3)))
    args = tuple(jnp.asarray(a, jnp.float32) for a in args)
    _, window = resolve(args[0], (3, 3), 1, "SAME", 1, 1, 1)

    def turns(batch):  # each sample has 20 x 9 x 2 numbers of patches and 54 of its kernel
        return lowerings.turns((batch, 4, 5, 2), (3, 3, 2, 3), window, itemsize=4)

    assert turns(6) == number
    assert turns(7) in (1, 7)
    assert turns(0) == 1

    def loss(lowering):
        return lambda args: jnp.sum(lowering(*args, window, None) ** 3)

    value, gradients = jax.value_and_grad(loss(lowerings.samples))(args)
    expected, theirs = jax.value_and_grad(loss(lowerings.patches))(args)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), gradients, theirs)


def test_samples_keep_nothing_but_their_inputs_for_backward():
    shapes = (16, 16, 16, 8), (4, 3, 3, 8, 8), (16, 4), (16, 3, 3)
    args = tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)

    def residuals(lowering):
        def pull(*args):
            return jax.vjp(partial(positional, lowering=lowering), *args)[1]

        kept = jax.eval_shape(pull, *args)
        return sum(leaf.size for leaf in jax.tree.leaves(kept))

    def positional(x, w, mix, taps, lowering):
        return dynamic_conv(x, w, mix, taps=taps, lowering=lowering)

    inputs = sum(a.size for a in args)
    assert residuals("samples") <= 1.1 * inputs
    assert residuals("patches") > 5 * inputs


def test_a_symbolic_batch_is_taken_one_by_one():
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 6, 6, 2), jnp.float32)
    mix = jax.ShapeDtypeStruct((batch, 3), jnp.float32)
    w = jnp.ones((3, 3, 3, 2, 4))
    function = jax.jit(lambda x, mix: dynamic_conv(x, w, mix, lowering="samples"))
    exported = jax.export.export(function)(x, mix)
    assert exported.call(jnp.ones((5, 6, 6, 2)), jnp.ones((5, 3))).shape == (5, 6, 6, 4)
