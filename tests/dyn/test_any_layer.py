"""Every convolution of the catalogue, slid in any way: the numbers of the definition, or a clear error.

Given contexts, a layer convolves each sample with a kernel of its own. The kernels are read off its answers
to single ones, slid as plainly as can be; then numpy slides them in the way that is asked for.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from any_window import DTYPES, LONG, QUICK, assert_rounded, refused, windows
from hypothesis import event, example, given
from hypothesis import strategies as st
from layer_cases import CONVOLUTIONS, LAYERS, filled, random_input

from dyn.ops import LOWERINGS

SAMPLES = 3
CONTEXTS = random_input(SAMPLES, 5, seed=2)
FEATURES = 4
SIZES = {1: ((1,), (3,), (4,)), 2: ((1, 1), (3, 3), (2, 3)), 3: ((1, 1, 1), (2, 1, 2))}
AXIS = {"stride": 1, "padding": "SAME", "input_dilation": 1, "kernel_dilation": 1}
NOTHING = {
    "spatial": (1, 1),
    "batch": 0,
    "size": (3, 3),
    "groups": 1,
    "fields": {"padding": "SAME"},
    "axes": [AXIS, AXIS],
    "use_bias": True,
    "dtype": "float32",
    "lowering": "auto",
}
# What a layer may say of a geometry that is not its own.
OWN_LIMITS = (
    "Leave grouped and depthwise convolutions static",  # DCDConv
    "needs a square 2-D kernel",  # RotatedConv
    "lowering='\\w+' cannot do this",
    "which do not divide",  # the warehouse's cells
    r"num_kernels=3 must be from 1 to \d+",  # the frequencies of a small kernel
)


@st.composite
def geometries(draw):
    """How a layer is slid over which input."""
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    fields, axes = draw(windows(rank))
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
    """The contexts, one after another for samples that are given one after another."""
    vectors = jnp.tile(CONTEXTS, (-(-inputs.shape[0] // SAMPLES), 1))[: inputs.shape[0]]
    if name != "PixelDynamicConv":
        return vectors
    return jnp.broadcast_to(
        vectors.reshape(-1, *(1,) * rank, vectors.shape[-1]), (*inputs.shape[:-1], 5)
    )


@functools.cache
def kernels_of(name, size, groups, use_bias):
    """`(variables, kernels [SAMPLES, *k, I/G, O], biases [SAMPLES, O])`, one for each context."""
    fields = dict(padding="VALID", feature_group_count=groups, use_bias=use_bias)
    layer = CONVOLUTIONS[name].layer(FEATURES, size, **fields)
    # A one in each channel, and nothing, for each context.
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
    # What the middle says to its surroundings is the kernel turned round.
    answers = np.flip(y[:-1] - y[-1], tuple(range(2, 2 + len(size))))  # [I, SAMPLES, *k, O]
    whole = np.moveaxis(answers, 0, -2)
    by_group = np.split(whole, groups, axis=-1)
    blocks = [np.split(k, groups, axis=-2)[group] for group, k in enumerate(by_group)]
    return variables, np.concatenate(blocks, axis=-1), biases


def check(name, case):
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
            said = [why] if why else []
            assert re.search("|".join([*said, *OWN_LIMITS]), str(error)), str(error)
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
def test_any_geometry_is_that_of_the_definition_or_refused(name):
    @QUICK(max_examples=3)
    @example(NOTHING)
    @given(geometries())
    def examples(case):
        check(name, case)

    examples()


@pytest.mark.parametrize("name", LAYERS)
def test_no_example_is_an_empty_batch_for_every_layer(name):
    layer, shape = LAYERS[name].layer(), LAYERS[name].shape
    variables = filled(layer, random_input(*shape))
    y = layer.apply(variables, jnp.zeros((0, *shape[1:])))
    assert y.shape == (0, *jax.eval_shape(layer.apply, variables, random_input(*shape)).shape[1:])


@pytest.mark.long
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_any_of_many_geometries_is_that_of_the_definition_or_refused(name):
    @LONG(max_examples=100)
    @given(geometries())
    def examples(case):
        check(name, case)

    examples()
