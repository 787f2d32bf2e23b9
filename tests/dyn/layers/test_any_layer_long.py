"""Every convolution of the catalogue in any geometry: the numbers of the definition, or an error.

With fixed contexts, a layer convolves each sample with a fixed kernel. The kernels are read from its
outputs for unit impulses in the plainest geometry; then numpy convolves with them in the drawn one.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from any_geometry import DTYPES, LONG, assert_rounded, geometries, refused
from hypothesis import event, given
from hypothesis import strategies as st
from layer_cases import CONVOLUTIONS, filled, random_input

from dyn.ops import LOWERINGS

pytestmark = pytest.mark.long

SAMPLES = 3
CONTEXTS = random_input(SAMPLES, 5, seed=2)
FEATURES = 4
SIZES = {1: ((1,), (3,), (4,)), 2: ((1, 1), (3, 3), (2, 3)), 3: ((1, 1, 1), (2, 1, 2))}
# Errors of layers that do not support every geometry.
OWN_LIMITS = (
    "grouped and depthwise",  # DCDConv
    "square 2-D kernel",  # RotatedConv
    "cannot do this",  # lowerings
    "do not divide",  # the warehouse's cells
    "must be from 1 to",  # the frequencies of a small kernel
)


@st.composite
def applications(draw):
    """Draws a layer's fields and the shape and dtype of its input."""
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    fields, axes = draw(geometries(rank))
    return {
        "spatial": tuple(draw(st.integers(1, 6 - rank)) for _ in range(rank)),
        "batch": draw(st.sampled_from((0, 1, SAMPLES, SAMPLES))),
        "size": draw(st.sampled_from(SIZES[rank])),
        "groups": draw(st.sampled_from((1, 1, 2, FEATURES))),
        "fields": fields,
        "axes": axes,
        "use_bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(DTYPES)),
        "lowering": draw(st.sampled_from(("auto", "auto", *LOWERINGS))),
    }


def contexts_for(name, inputs, rank):
    """Repeats the contexts for the samples of a batch."""
    vectors = jnp.tile(CONTEXTS, (-(-inputs.shape[0] // SAMPLES), 1))[: inputs.shape[0]]
    if name != "PixelDynamicConv":
        return vectors
    return jnp.broadcast_to(
        vectors.reshape(-1, *(1,) * rank, vectors.shape[-1]), (*inputs.shape[:-1], 5)
    )


@functools.cache
def kernels_of(name, size, groups, use_bias):
    """Returns variables, and kernels `[SAMPLES, *k, I/G, O]` and biases `[SAMPLES, O]` by context."""
    fields = dict(padding="VALID", feature_group_count=groups, use_bias=use_bias)
    layer = CONVOLUTIONS[name].layer(FEATURES, size, **fields)
    # An impulse in each channel, and zeros, for each context.
    ones = np.zeros((FEATURES + 1, *(2 * k - 1 for k in size), FEATURES), np.float32)
    for channel in range(FEATURES):
        ones[(channel, *(k - 1 for k in size), channel)] = 1
    x = np.repeat(ones, SAMPLES, axis=0)
    context = contexts_for(name, x, len(size))
    variables = filled(layer, x, context)
    if "local" in variables["params"]:
        # FDConv's local attention looks at the input whatever the context is; here it is constant.
        variables["params"]["local"]["conv"]["kernel"] *= 0
    y = np.asarray(jax.jit(layer.apply)(variables, x, context))
    y = y.reshape(FEATURES + 1, SAMPLES, *y.shape[1:])
    biases = y[-1].reshape(SAMPLES, -1, FEATURES)[:, 0]
    # The outputs around an impulse are the kernel, reversed.
    answers = np.flip(y[:-1] - y[-1], tuple(range(2, 2 + len(size))))  # [I, SAMPLES, *k, O]
    whole = np.moveaxis(answers, 0, -2)
    by_group = np.split(whole, groups, axis=-1)
    blocks = [np.split(k, groups, axis=-2)[group] for group, k in enumerate(by_group)]
    return variables, np.concatenate(blocks, axis=-1), biases


def check_layer(name, case):
    """Applies a layer in a drawn geometry and compares it with numpy, or expects an error."""
    rank, size, groups = len(case["size"]), case["size"], case["groups"]
    fields = {**case["fields"], "feature_group_count": groups, "use_bias": case["use_bias"]}
    layer = CONVOLUTIONS[name].layer(FEATURES, size, **fields)
    if case["lowering"] != "auto" and hasattr(layer, "lowering"):
        layer = layer.clone(lowering=case["lowering"])
    dtype = jnp.dtype(case["dtype"])
    layer = layer.clone(dtype=dtype)
    why = refused(fields["padding"], case["spatial"], case["axes"])
    # flax's own norms cannot compute in float64 under strict promotion.
    promotion = "standard" if dtype == jnp.float64 else "strict"
    with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion(promotion):
        x = random_input(case["batch"], *case["spatial"], FEATURES, dtype=dtype)
        context = contexts_for(name, x, rank)
        try:
            variables, kernels, biases = kernels_of(name, size, groups, case["use_bias"])
            y = layer.apply(variables, x, context)
        except ValueError as error:
            event("refused")
            known = [*([why] if why else []), *OWN_LIMITS]
            assert re.search("|".join(known), str(error)), str(error)
            return
    assert why is None and y.dtype == dtype
    out = numpy_oracle.output_shape(case["spatial"], size, case["axes"])
    assert y.shape == (case["batch"], *out, FEATURES)
    event("computed" if y.size else "empty")
    if name == "RotatedConv, max":  # not linear in the input
        return
    for sample in range(case["batch"]):
        one = np.asarray(x[sample : sample + 1], np.float64), kernels[sample : sample + 1]
        want = numpy_oracle.dynamic_conv(*one, None, None, case["axes"], groups)[0] + biases[sample]
        sizes = (np.abs(a) for a in one)
        terms = numpy_oracle.dynamic_conv(*sizes, None, None, case["axes"], groups)[0]
        # A candidate's terms may be larger than those of their mixture.
        assert_rounded(y[sample], want, 4 * terms + np.abs(biases[sample]) + 0.1, 40)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_any_geometry(name):
    @LONG(max_examples=100)
    @given(applications())
    def examples(case):
        check_layer(name, case)

    examples()
