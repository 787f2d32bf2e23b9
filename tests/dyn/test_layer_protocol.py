"""What all the layers of the catalogue promise: fields, context, temperature, statistics, dtypes, errors."""

import dataclasses
import functools
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import (
    CONVOLUTIONS,
    LAYERS,
    assert_trees_close,
    init_shapes,
    random_input,
    usual,
)

from dyn.schedules import set_temperature

# Of those that look at a context; CBAM looks at its input only.
LOOKING = [name for name, case in LAYERS.items() if case.looks_at]
# SqueezeExcite and CBAM weigh what they are given, in whatever dtype it is.
WITH_DTYPE = [name for name in LAYERS if name not in ("SqueezeExcite", "CBAM")]


# Fields.


@pytest.mark.parametrize(
    ("static", "name"), [*((nn.Conv, name) for name in CONVOLUTIONS), (nn.Dense, "DCDDense")]
)
def test_fields_begin_with_those_of_the_static_layer(static, name):
    """A layer written for `nn.Conv`, with positions or names, is one for these.

    Not compared: hooks with which flax lets its own products be replaced; a dynamic layer has none of
    those products. Functions are compared by what they make, in the tests of initialisation;
    `kernel_init` differs on purpose in most methods: their papers initialise for the fan out, and
    `nn.Conv` for the fan in.
    """
    hooks = {
        *("promote_dtype", "conv_general_dilated", "conv_general_dilated_cls"),
        *("dot_general", "dot_general_cls", "parent", "name"),
    }

    def own_fields(layer):
        return [f for f in dataclasses.fields(layer) if f.name not in hooks]

    theirs, ours = own_fields(static), own_fields(LAYERS[name].layer())
    names = [f.name for f in theirs]
    assert names[0] == "features" and names[-1] == "bias_init"
    assert [f.name for f in ours[: len(names)]] == names
    for their, our in zip(theirs, ours, strict=False):
        if their.name not in ("kernel_init", "bias_init"):
            assert our.default is their.default or our.default == their.default, their.name
    # What follows is the method's, and each has a default, so that the same arguments are enough.
    assert all(f.default is not dataclasses.MISSING for f in ours[len(LAYERS[name].args) :])


@pytest.mark.parametrize("name", LAYERS)
def test_variables_are_in_the_collections_that_the_method_needs(name):
    case, usually = LAYERS[name], usual(name)
    collections = {"params"} | ({"batch_stats"} if case.statistics else set())
    attention = {"temperature"} if case.temperature else set()
    attention |= {"blend"} if name == "WarehouseConv" else set()
    assert set(usually.variables) == collections | ({"attention"} if attention else set())
    leaves = jax.tree_util.tree_leaves_with_path(usually.variables.get("attention", {}))
    assert {path[-1].key for path, _ in leaves} == attention


# Context.


@pytest.mark.parametrize("name", LOOKING)
def test_attention_looks_at_the_context(name):
    _, variables, x, apply, *_ = usual(name)
    context = LAYERS[name].looks_at(x)
    # What is looked at where nothing is given, given.
    want = apply(variables, x)
    np.testing.assert_allclose(apply(variables, x, context), want, rtol=1e-5, atol=1e-6)
    other = apply(variables, x, random_input(*context.shape, seed=5))
    assert np.abs(other - want).max() > 1e-3
    # Each sample has the attention of its own context.
    mixed = jnp.concatenate([context[:1], random_input(*context.shape, seed=5)[1:]])
    y = apply(variables, x, mixed)
    np.testing.assert_allclose(y[:1], want[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[1:], other[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOOKING)
def test_a_context_may_have_any_number_of_features(name):
    layer, _, x, *_ = usual(name)
    context = jax.ShapeDtypeStruct((*LAYERS[name].looks_at(x).shape[:-1], 7), jnp.float32)
    y = jax.eval_shape(layer.init_with_output, jax.random.key(0), x, context)[0]
    assert y.shape == jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape


@pytest.mark.parametrize("shape", [(2, 7), (7,), (4, 1, 7), (4, 6, 5, 7)])
@pytest.mark.parametrize("name", LOOKING)
def test_a_context_that_does_not_fit_is_an_error_that_says_what_does(name, shape):
    if name == "PixelDynamicConv" and len(shape) == 4:
        shape = (4, 6, 4, 7)  # this layer takes one for each place, of the input or the output
    layer, _, x, *_ = usual(name)
    with pytest.raises(ValueError, match="context ") as error:
        jax.eval_shape(layer.init, jax.random.key(0), x, jnp.ones(shape))
    message = str(error.value)
    assert str(shape) in message or str(shape[1:-1]) in message
    assert "[*batch, " in message or "grid" in message
    if name in CONVOLUTIONS and name != "PixelDynamicConv":
        assert f"attention of {type(layer).__name__} is one for the whole input" in message


# Temperature.


@pytest.mark.parametrize("name", [name for name, case in LAYERS.items() if case.temperature])
def test_changing_the_temperature_compiles_nothing_anew(name):
    _, variables, x, apply, _, traces = usual(name)
    # A static convolution would not notice, and gates are 0 or 1 at any temperature.
    hard = name.startswith("GatedConv")
    first = apply(set_temperature(variables, 1.0), x)
    before = len(traces)
    outputs = [apply(set_temperature(variables, t), x) for t in (1.0, 2, np.float32(30.0))]
    assert len(traces) == before
    np.testing.assert_array_equal(outputs[0], first)
    assert np.allclose(outputs[0], outputs[2], atol=1e-4) == hard

    # Inside the compiled function, where the temperature is traced: the same numbers.
    inside = jax.jit(lambda v, t, x: apply(set_temperature(v, t), x))
    got = inside(variables, jnp.float32(30), x)
    np.testing.assert_allclose(got, outputs[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_temperature_is_one_without_its_collection(name):
    layer, variables, x, apply, *_ = usual(name)
    without = {key: value for key, value in variables.items() if key != "attention"}
    want = apply(set_temperature(variables, 1.0), x)
    np.testing.assert_allclose(apply(without, x), want, rtol=1e-5, atol=1e-6)
    # Also in training, where other collections are mutable.
    _, state = jax.eval_shape(partial(layer.apply, mutable=["batch_stats"]), without, x)
    assert set(state) == ({"batch_stats"} if LAYERS[name].statistics else set())


# Training and inference.


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_are_used_and_updated_exactly_when_they_are_mutable(name):
    layer, variables, x, apply, train, _ = usual(name)
    inference, (y, state) = apply(variables, x), train(variables, x)
    if not LAYERS[name].statistics:
        assert not state
        np.testing.assert_allclose(y, inference, rtol=1e-5, atol=1e-6)
        return
    before, after = variables["batch_stats"], state["batch_stats"]
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.abs(new - old).max() > 1e-4
    if name == "SpectralNormConv":  # its statistics are its kernels' and not the batch's
        np.testing.assert_allclose(y, inference, rtol=1e-5, atol=1e-6)
        return
    assert np.abs(y - inference).max() > 1e-3

    def forced(use_running_average):
        told = layer.copy(use_running_average=use_running_average)
        return jax.jit(partial(told.apply, mutable=["batch_stats"]))(variables, x)

    for told, want, statistics in ((True, inference, before), (False, y, after)):
        got, state = forced(told)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert_trees_close(state["batch_stats"], statistics, rtol=1e-5, atol=1e-6)


# PixelDynamicConv is not among them: its norm is over positions, too.
NORMED = [
    name
    for name, case in CONVOLUTIONS.items()
    if hasattr(case.layer(), "attention_norm") and name != "PixelDynamicConv"
]


@pytest.mark.parametrize("shape", [(1, 6, 5, 4), (6, 5, 4), (1, 1, 6, 5, 4)])
@pytest.mark.parametrize("name", NORMED)
def test_a_batch_of_one_needs_another_norm_to_train(name, shape):
    layer = LAYERS[name].layer(attention_norm="batch")
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = init_shapes(layer, x)  # initialising is possible
    with pytest.raises(ValueError, match="two or more samples, use attention_norm='layer'"):
        jax.eval_shape(partial(layer.apply, mutable=["batch_stats"]), variables, x)
    out = (*shape[:-1], 6)
    assert jax.eval_shape(layer.apply, variables, x).shape == out  # inference
    for fields in (dict(attention_norm="layer"), dict(use_running_average=True)):
        other = layer.copy(**fields)
        step = partial(other.apply, mutable=["batch_stats"])
        assert jax.eval_shape(step, init_shapes(other, x), x)[0].shape == out


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("name", NORMED)
def test_other_norms_have_no_statistics(name, norm):
    layer, x = LAYERS[name].layer(attention_norm=norm), usual(name).x
    variables = init_shapes(layer, x)
    assert "attention" not in variables.get("batch_stats", {})
    assert ("norm" in variables["params"]["attention"]) == (norm == "layer")


# Dtypes.


@functools.cache
def deciding(name, dtype=None):
    """A layer in a dtype, compiled with all that it sows."""
    layer = LAYERS[name].layer() if dtype is None else LAYERS[name].layer(dtype=dtype)
    return jax.jit(partial(layer.apply, mutable=["intermediates"]))


@pytest.mark.parametrize("name", LAYERS)
def test_what_attention_decided_is_sown(name):
    _, variables, x, apply, *_ = usual(name)
    y, state = deciding(name)(variables, x)
    np.testing.assert_allclose(y, apply(variables, x), rtol=1e-5, atol=1e-6)
    sown = state["intermediates"].get("attention", state["intermediates"])
    (weights,) = sown["weights"]
    assert weights and all(w.shape[0] == len(x) for w in weights.values())
    if name in CONVOLUTIONS and name not in ("DCDConv", "GatedConv, filters", "GatedConv, slices"):
        assert weights["kernel"].ndim == 2  # how candidates were mixed, under one name


def float32_leaves(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)} <= {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", WITH_DTYPE)
def test_low_precision_is_for_the_convolution_and_not_for_attention(name, dtype):
    layer, variables, x, *_ = usual(name)
    low = layer.copy(dtype=dtype)
    low_x = x.astype(dtype)
    assert float32_leaves(init_shapes(low, low_x))  # parameters and statistics
    # From inputs of either dtype.
    assert jax.eval_shape(low.apply, variables, x).dtype == dtype
    y, state = deciding(name, dtype)(variables, low_x)
    assert y.dtype == dtype
    want, exact = deciding(name)(variables, low_x.astype(jnp.float32))
    # The same attention to float32's precision, as it is computed from the same numbers.
    attention, exact = state["intermediates"], exact["intermediates"]
    assert float32_leaves(attention)
    trees = (tree.get("attention", tree) for tree in (attention, exact))
    assert_trees_close(*trees, rtol=1e-4, atol=1e-6)
    # bfloat16 has 8 bits: each of dozens of products is off by up to 2^-8, with signs at random.
    np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.03 * np.abs(want).max())


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_in_bfloat16_are_used_in_float32(name):
    case = LAYERS[name]
    fields = dict(dtype=jnp.float32) if name in WITH_DTYPE else {}
    layer, x = case.layer(param_dtype=jnp.bfloat16, **fields), random_input(*case.shape)
    shapes = init_shapes(layer, x)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes.pop("params"))}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    assert float32_leaves(shapes)  # statistics and temperature
    _, variables, _, apply, *_ = usual(name)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), variables["params"])
    rounded = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    want = apply({**variables, "params": rounded}, x)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms
        got = jax.jit(layer.apply)({**variables, "params": params}, x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_bfloat16_inputs_promote_with_float32_parameters_as_in_flax_conv(name):
    x = jax.ShapeDtypeStruct((2, 6, 5, 4), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        static, dynamic = (
            jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0]
            for layer in (nn.Conv(6, (3, 3)), CONVOLUTIONS[name].layer())
        )
    assert dynamic.dtype == static.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_takes_whole_numbers_as_flax_conv_does(name, dtype):
    """`nn.Conv(..., dtype=float32)` convolves a picture of bytes; so must its stand-in."""
    shape = LAYERS[name].shape
    picture = jnp.asarray(np.random.default_rng(0).integers(0, 9, shape), dtype)
    static = nn.Conv(6, (3, 3), dtype=jnp.float32)
    assert jax.eval_shape(static.init_with_output, jax.random.key(0), picture)
    layer = LAYERS[name].layer(dtype=jnp.float32)
    _, variables, _, apply, *_ = usual(name)
    got, want = layer.apply(variables, picture), apply(variables, picture.astype(jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# Errors.


PICTURES = (2, 6, 5, 4)
ERRORS = {
    # All of them.
    "*": [
        (dict(kernel_size=3), PICTURES, r"write kernel_size=\(3, 3\)"),
        (dict(kernel_size=3), (2, 5, 5, 5, 4), r"write kernel_size=\(3, 3, 3\)"),
        (dict(kernel_size=(3, 3)), (5, 4), r"\[\*batch, \*spatial, features\].*\(5, 4\)"),
        (dict(kernel_size=(3, 3, 3, 3)), (2, 5, 5, 5, 5, 4), "1, 2 or 3"),
        (dict(padding="SAMME"), PICTURES, "'SAMME' is unknown"),
        (dict(padding="CAUSAL"), PICTURES, "'CAUSAL' is for 1-D"),
        (dict(padding=[(1, 1)]), PICTURES, "1 entries for 2 spatial axes"),
        (dict(strides=(2, 2, 2)), PICTURES, "strides=.* must be a positive number, or 2 of them"),
        (dict(input_dilation=2), PICTURES, "give a pair of numbers for each spatial axis"),
    ],
    # All but DCDConv, which takes neither groups nor masks.
    "grouped": [
        (dict(feature_group_count=3), PICTURES, "must divide the 4 input"),
        (dict(feature_group_count=4), PICTURES, "6 output features"),
        (
            dict(mask=jnp.ones((3, 3))),
            PICTURES,
            r"mask must have the shape of one kernel, \(3, 3, 4",
        ),
        (dict(lowering="fast"), PICTURES, "lowering='fast'.*'taps'"),
    ],
    "DCDConv": [
        (dict(feature_group_count=2), PICTURES, "Leave grouped and depthwise convolutions static"),
        (dict(mask=jnp.ones((3, 3, 4, 6))), PICTURES, "another layer where positions must stay"),
        (dict(pool=0), PICTURES, "pool=0 must be one bin"),
    ],
    "ODConv": [(dict(lowering="outputs"), PICTURES, "tap attention")],
    "FDConv": [
        (dict(lowering="outputs"), PICTURES, "tap attention"),
        (dict(num_kernels=500), PICTURES, "num_kernels=500 must be from 1 to 126"),
    ],
    "FDConv, local": [
        (dict(lowering=name), PICTURES, f"'{name}' cannot do this: FDConv has a kernel for each")
        for name in ("outputs", "shared")
    ],
    "WarehouseConv": [
        *(
            (dict(lowering=n), PICTURES, f"'{n}' cannot do this: WarehouseConv has a kernel for")
            for n in ("outputs", "shared")
        ),
        (dict(in_ratio=0.75), PICTURES, "which do not divide"),
        (dict(cell_ratio=0), PICTURES, "cell_ratio must be positive"),
    ],
    "PixelDynamicConv": [
        (dict(attention="local"), PICTURES, "write 'pixel' or 'image'"),
        *((dict(lowering=n), PICTURES, "cannot do this") for n in ("taps", "patches", "samples")),
    ],
    "GatedConv, kernels": [
        (dict(granularity="layer"), PICTURES, "write 'kernel', 'filter' or 'slice'"),
        (dict(active=5), PICTURES, "active=5 of 4 gates"),
        (dict(num_kernels=None), PICTURES, "to initialise a layer write a number"),
    ],
    "RotatedConv, mixture": [
        (dict(pooling="sum"), PICTURES, "write 'mixture', 'max', 'mean' or 'attention'"),
        (dict(kernel_size=(3, 2)), PICTURES, "take ODConv or DynamicConv"),
        (dict(kernel_size=(3,)), PICTURES[1:], "take ODConv or DynamicConv"),
        (dict(kernel_size=(3, 3, 3)), (1, *PICTURES), "take ODConv or DynamicConv"),
    ],
    "SpectralNormConv": [
        (dict(n_steps=0), PICTURES, "n_steps=0 must be at least 1"),
        (dict(num_kernels=0), PICTURES, "num_kernels=0"),
    ],
}


def errors_of(name):
    yield from ERRORS["*"]
    if name != "DCDConv":
        yield from ERRORS["grouped"]
    if hasattr(LAYERS[name].layer(), "attention_norm"):
        yield (
            dict(attention_norm="group"),
            PICTURES,
            "'group' is unknown: write 'batch', 'layer' or",
        )
    yield from ERRORS.get(name, ())


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_errors_say_what_is_wrong_and_what_to_do(name):
    for fields, shape, message in errors_of(name):
        layer = LAYERS[name].layer(6, **{"kernel_size": (3, 3), **fields})
        with pytest.raises(ValueError) as error:
            jax.eval_shape(layer.init, jax.random.key(0), jnp.ones(shape))
        assert re.search(message, str(error.value)), (fields, str(error.value))
