"""Any convolution that hypothesis can think of: the numbers of the definition, or an error."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from any_geometry import DTYPES, assert_rounded, geometries, refused
from hypothesis import event
from hypothesis import strategies as st

from dyn.ops import LOWERINGS, dynamic_conv
from dyn.ops.geometry import Problem
from dyn.ops.lowerings import why_unsupported


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
        "lowering": draw(st.sampled_from((*LOWERINGS, "auto"))),
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
