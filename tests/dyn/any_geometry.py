"""Any geometry of a convolution, for hypothesis, and the error of those that are refused."""

import functools

import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

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
