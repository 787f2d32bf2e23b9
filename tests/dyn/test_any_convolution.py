"""Whatever convolution is asked for: the numbers of the definition, or an error that says what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from any_window import DTYPES, LONG, QUICK, assert_rounded, refused, windows
from hypothesis import event, given
from hypothesis import strategies as st

from dyn.ops import LOWERINGS, dynamic_conv
from dyn.ops.lowerings import unable


@st.composite
def convolutions(draw):
    """Shapes and dtypes of `dynamic_conv`'s arguments."""
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    longest = 6 - rank
    spatial = tuple(draw(st.integers(1, longest)) for _ in range(rank))
    size = tuple(draw(st.integers(1, longest if rank < 3 else 2)) for _ in range(rank))
    groups, i, o, k = (draw(st.integers(1, 3)) for _ in range(4))
    fields, axes = draw(windows(rank))
    return {
        "inputs": (draw(st.integers(0, 3)), *spatial, groups * i),
        "kernels": (k, *size, i, groups * o),
        "fields": {**fields, "feature_group_count": groups},
        "axes": axes,
        "mix": draw(st.sampled_from(("image", "pixel", *(["none"] if k == 1 else [])))),
        "taps": draw(st.booleans()),
        "dtype": draw(st.sampled_from(DTYPES)),
        "kernel_dtype": draw(st.sampled_from(("float32", "float32", "bfloat16"))),
        "lowering": draw(st.sampled_from((*LOWERINGS, "auto"))),
    }


def check(case):
    rng = np.random.default_rng(0)
    batch, *spatial, _ = case["inputs"]
    number, *size, _, _ = case["kernels"]
    dtype, fields, lowering = jnp.dtype(case["dtype"]), case["fields"], case["lowering"]
    why = refused(fields["padding"], spatial, case["axes"])
    # Nobody knows what would come out of a convolution that is refused.
    out = spatial if why else numpy_oracle.output_shape(spatial, size, case["axes"])
    if lowering != "auto" and unable(
        lowering, pixelwise=case["mix"] == "pixel", tap_attention=case["taps"]
    ):
        why = why or "cannot do this"
    shape = {"image": (batch, number), "pixel": (batch, *out, number), "none": None}[case["mix"]]
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(rng.standard_normal(case["inputs"]), dtype)
        w = jnp.asarray(rng.standard_normal(case["kernels"]), case["kernel_dtype"])
        mix = None if shape is None else jnp.asarray(rng.standard_normal(shape), jnp.float32)
        taps = jnp.asarray(rng.uniform(size=(batch, *size)), jnp.float32) if case["taps"] else None

        def run():
            return dynamic_conv(x, w, mix, taps=taps, lowering=lowering, **fields)

        if why:
            event("refused")
            with pytest.raises(ValueError, match=why):
                run()
            return
        y = run()
        assert y.dtype == dtype
    known = [None if a is None else np.asarray(a, np.float64) for a in (x, w, mix, taps)]
    groups = fields["feature_group_count"]
    want = numpy_oracle.dynamic_conv(*known, case["axes"], groups)
    assert y.shape == want.shape
    event(f"computed by {lowering}" if y.size else "empty")
    sizes = [None if a is None else np.abs(a) for a in known]
    terms = numpy_oracle.dynamic_conv(*sizes, case["axes"], groups)
    assert_rounded(y, want, terms, 8 + np.prod(size))


@QUICK(max_examples=200)
@given(convolutions())
def test_any_convolution_is_that_of_the_definition_or_refused(case):
    check(case)


@pytest.mark.long
@LONG(max_examples=3000)
@given(convolutions())
def test_any_of_many_convolutions_is_that_of_the_definition_or_refused(case):
    check(case)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(strides=1.5), "strides=1.5 must be a positive number"),
        (dict(strides=(1.9, 1)), "strides="),
        (dict(strides="2"), "strides='2' must be"),
        (dict(kernel_dilation=-1), "kernel_dilation=-1 must be"),
        (dict(padding=1.5), "padding=1.5 must be a name such as 'SAME'"),
        (dict(padding=[(1, 2, 3), (1, 1)]), "a number or a pair of them"),
        (dict(padding=[1.5, 1]), "a number or a pair of them"),
        (dict(padding=None), "padding=None must be"),
        (dict(padding=-3), "padding=-3 crops more than there is of the spatial axes"),
        (dict(feature_group_count=0), "positive"),
        (dict(feature_group_count=-2), "positive"),
        (dict(kernels=jnp.ones((3, 0, 3, 2, 4))), "positive"),
        (dict(kernels=jnp.ones((0, 3, 3, 2, 4)), mix=jnp.ones((2, 0))), "no kernel"),
        (dict(kernels=jnp.ones((3, 3, 3, 2, 4), jnp.int32)), "floating point"),
        (dict(mix=jnp.ones((2, 3), jnp.int32)), "floating point"),
        (dict(taps=jnp.ones((2, 3, 3), jnp.int32)), "floating point"),
        (dict(inputs=jnp.ones((2, 5, 5, 2), jnp.complex64)), "floating point"),
    ],
)
def test_arguments_that_are_no_convolution_are_refused(change, message):
    good = dict(
        inputs=jnp.ones((2, 5, 5, 2)), kernels=jnp.ones((3, 3, 3, 2, 4)), mix=jnp.ones((2, 3))
    )
    with pytest.raises(ValueError, match=message):
        dynamic_conv(**{**good, **change})


def test_numbers_of_numpy_are_numbers():
    x, w = jnp.ones((2, 5, 5, 2)), jnp.ones((1, 3, 3, 2, 4))
    two = np.int64(2)
    y = dynamic_conv(x, w, strides=two, padding=two, kernel_dilation=(two, two))
    np.testing.assert_array_equal(
        y, dynamic_conv(x, w, strides=2, padding=2, kernel_dilation=(2, 2))
    )
