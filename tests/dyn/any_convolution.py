"""Any convolution that hypothesis can think of: the numbers of the definition, or an error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from convolution_cases import PORTABLE
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

from dyn.ops import dynamic_conv
from dyn.ops.geometry import Problem
from dyn.ops.lowerings import why_unsupported

DTYPES = ("float32", "float64", "bfloat16", "float16")
NAMED = ("SAME", "VALID", "SAME_LOWER", "CIRCULAR", "REFLECT", "CAUSAL", "same")
# The same examples in each run.
QUICK = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = functools.partial(QUICK, derandomize=False, print_blob=True)


@st.composite
def geometries(draw, rank):
    """Draws `nn.Conv`'s fields, and the keywords of `numpy_oracle.axis_reads` for each axis."""
    strides, by_stride = draw(per_axis(st.integers(1, 3), rank))
    kernel_dilation, by_kernel = draw(per_axis(st.integers(1, 3), rank))
    dilations = st.just(1)
    if draw(st.booleans()):
        padding = draw(st.sampled_from(NAMED))
        by_padding = (padding,) * rank
        if padding == "VALID":
            dilations = st.sampled_from((1, 1, 2))
    else:
        dilations = st.sampled_from((1, 1, 1, 2, 3))
        pair = st.tuples(st.integers(-2, 3), st.integers(-2, 3))
        padding, by_padding = draw(per_axis(draw(st.sampled_from((st.integers(0, 3), pair))), rank))
        if isinstance(by_padding[0], tuple):
            padding = by_padding  # a pair alone would be a number for each of two axes
    if draw(st.integers(0, 19)) == 0:
        dilations = st.just(2)  # whatever the padding
    input_dilation, by_input = draw(per_axis(dilations, rank))
    fields = {
        "strides": strides,
        "padding": padding,
        "input_dilation": input_dilation,
        "kernel_dilation": kernel_dilation,
    }
    axes = [
        {"stride": s, "padding": p, "input_dilation": i, "kernel_dilation": d}
        for s, p, i, d in zip(by_stride, by_padding, by_input, by_kernel, strict=True)
    ]
    return fields, axes


@st.composite
def per_axis(draw, values, rank):
    """Draws one value for all axes, or one for each; and returns the values of the axes."""
    if draw(st.booleans()):
        value = draw(values)
        return value, (value,) * rank
    each = tuple(draw(values) for _ in range(rank))
    return each, each


def refused(padding, spatial, axes):
    """Returns a part of the error for a geometry that is refused; None for one that is not."""
    if isinstance(padding, str):
        if padding != "VALID" and any(axis["input_dilation"] > 1 for axis in axes):
            return "ambiguous"
        if padding == "CAUSAL" and len(axes) > 1:
            return "1-D"
    elif any(
        (n - 1) * axis["input_dilation"] + 1 + np.sum(axis["padding"]) < 0
        for n, axis in zip(spatial, axes, strict=True)
    ):
        return "crops"
    return None


def assert_rounded(y, want, terms, operations):
    """Asserts that each number is off by at most `operations` roundings of its terms.

    Args:
        y: the numbers.
        want: the exact numbers.
        terms: for each number the sum of the absolute values of its terms.
        operations: number of roundings.
    """
    epsilon = max(float(jnp.finfo(y.dtype).eps), float(jnp.finfo(jnp.float32).eps))
    error = np.abs(np.asarray(y, np.float64) - want)
    assert (error <= operations * epsilon * terms + 1e-30).all(), error.max()


@st.composite
def convolutions(draw):
    """Shapes and dtypes of `dynamic_conv`'s arguments."""
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    longest = 6 - rank
    spatial = tuple(draw(st.integers(1, longest)) for _ in range(rank))
    size = tuple(draw(st.integers(1, longest if rank < 3 else 2)) for _ in range(rank))
    groups, i, o, k = (draw(st.integers(1, 3)) for _ in range(4))
    fields, axes = draw(geometries(rank))
    return {
        "inputs": (draw(st.integers(0, 3)), *spatial, groups * i),
        "kernels": (k, *size, i, groups * o),
        "fields": {**fields, "feature_group_count": groups},
        "axes": axes,
        "mix": draw(st.sampled_from(("image", "pixel", *(["none"] if k == 1 else [])))),
        "taps": draw(st.booleans()),
        "dtype": draw(st.sampled_from(DTYPES)),
        "kernel_dtype": draw(st.sampled_from(("float32", "float32", "bfloat16"))),
        "lowering": draw(st.sampled_from((*PORTABLE, "auto"))),
    }


def check_convolution(case):
    """Computes a case and compares it with numpy, or expects the error that refuses it."""
    rng = np.random.default_rng(0)
    batch, *spatial, _ = case["inputs"]
    number, *size, _, _ = case["kernels"]
    dtype, fields, lowering = jnp.dtype(case["dtype"]), case["fields"], case["lowering"]
    why = refused(fields["padding"], spatial, case["axes"])
    # A refused convolution has no output shape.
    out = spatial if why else numpy_oracle.output_shape(spatial, size, case["axes"])
    problem = Problem(1, (), None, pixelwise=case["mix"] == "pixel", tap_attention=case["taps"])
    if lowering != "auto" and why_unsupported(lowering, problem):
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
