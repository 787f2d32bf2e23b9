"""The promises of all layers: fields, context, temperature, statistics, gradients, dtypes, errors."""

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import (
    CONVOLUTIONS,
    DENSE,
    LAYERS,
    LOCAL,
    POSITIONS,
    assert_learns,
    compiled_case,
    init_shapes,
    random_input,
)

from dyn.schedules import set_temperature

# Layers that look at a context; CBAM looks at its input only.
LOOKING = [name for name, case in LAYERS.items() if case.looks_at]


# Fields and variables.


@pytest.mark.parametrize(
    ("static", "name"),
    [*((nn.Conv, name) for name in CONVOLUTIONS), *((nn.Dense, name) for name in DENSE)],
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
    # The method's own fields follow, each with a default, so that the same arguments are enough.
    assert all(f.default is not dataclasses.MISSING for f in ours[len(LAYERS[name].args) :])


@pytest.mark.parametrize("name", LAYERS)
def test_variables_are_in_the_collections_that_the_method_needs(name):
    case, variables = LAYERS[name], compiled_case(name).variables
    collections = {"params"} | ({"batch_stats"} if case.statistics else set())
    attention = {"temperature"} if case.temperature else set()
    attention |= {"blend"} if name.startswith("Warehouse") else set()
    assert set(variables) == collections | ({"attention"} if attention else set())
    leaves = jax.tree_util.tree_leaves_with_path(variables.get("attention", {}))
    assert {path[-1].key for path, _ in leaves} == attention


# The usual case.

# Forms of a layer beside the one that the default run trains.
OTHER_FORMS = (
    *("FDConv, local", "GatedConv, kernels", "GatedConv, filters", "RotatedConv, max"),
    "WarehouseConv, whole cells",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.matrix] if n in OTHER_FORMS else []) for n in LAYERS],
)
def test_a_training_step(name):
    """It gives every parameter a gradient, updates the statistics, and sows what attention decided."""
    case, (_, variables, x, _, train, _) = LAYERS[name], compiled_case(name)
    (_, (y, state)), gradient = train(variables, x)
    assert y.dtype == jnp.float32 and y.shape[0] == x.shape[0]
    assert_learns(gradient)
    # Blank inputs have no variance that a norm could divide by.
    for leaf in jax.tree.leaves(train(variables, jnp.zeros_like(x))):
        assert np.isfinite(leaf).all()

    assert ("batch_stats" in state) == case.statistics
    if case.statistics:
        before, after = variables["batch_stats"], state["batch_stats"]
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert np.abs(new - old).max() > 1e-4

    sown = state["intermediates"].get("attention", state["intermediates"])
    (weights,) = sown["weights"]
    assert weights and all(w.shape[0] == len(x) for w in weights.values())
    others = ("DCDConv", "GatedConv, filters", "GatedConv, slices", *POSITIONS)
    if name in CONVOLUTIONS and name not in (*others, "SelectiveKernel", "DeformableConv"):
        assert weights["kernel"].ndim == 2  # the mixture of candidates, under one name


@pytest.mark.parametrize("name", LOOKING)
def test_attention_looks_at_the_context(name):
    _, variables, x, apply, *_ = compiled_case(name)
    context = LAYERS[name].looks_at(x)
    want = apply(variables, x, context)
    # Without a context, attention looks at the layer's input.
    np.testing.assert_allclose(apply(variables, x), want, rtol=1e-5, atol=1e-6)
    other = apply(variables, x, random_input(*context.shape, seed=5))
    assert np.abs(other - want).max() > 1e-3
    # Each sample has the attention of its own context.
    mixed = jnp.concatenate([context[:1], random_input(*context.shape, seed=5)[1:]])
    y = apply(variables, x, mixed)
    np.testing.assert_allclose(y[:1], want[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[1:], other[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, case in LAYERS.items() if case.temperature])
def test_a_new_temperature_compiles_nothing(name):
    _, variables, x, apply, _, traces = compiled_case(name)
    apply(set_temperature(variables, 1.0), x)
    before = len(traces)
    outputs = [apply(set_temperature(variables, t), x) for t in (1, 2.0, np.float32(30.0))]
    assert len(traces) == before
    # A static convolution would not change; gates are 0 or 1 at any temperature.
    hard = name.startswith("GatedConv")
    assert np.allclose(outputs[0], outputs[2], atol=1e-4) == hard


# Contexts by their shapes.


@pytest.mark.parametrize("name", LOOKING)
def test_a_context_may_have_any_number_of_features(name):
    layer, _, x, *_ = compiled_case(name)
    context = jax.ShapeDtypeStruct((*LAYERS[name].looks_at(x).shape[:-1], 7), jnp.float32)
    y = jax.eval_shape(layer.init_with_output, jax.random.key(0), x, context)[0]
    assert y.shape[:-1] == x.shape[:-1]


@pytest.mark.parametrize("name", LOOKING)
def test_a_context_that_does_not_fit_is_refused(name):
    layer, _, x, *_ = compiled_case(name)
    # Some layers take a context for each position of their input.
    pixels = (4, 6, 4, 7) if name in LOCAL else (4, 6, 5, 7)
    for shape in ((2, 7), (7,), (4, 1, 7), pixels):
        with pytest.raises(ValueError, match="context ") as error:
            jax.eval_shape(layer.init, jax.random.key(0), x, jnp.ones(shape))
        assert str(shape) in str(error.value) or str(shape[1:-1]) in str(error.value)


# Those of LOCAL are not among them: their norm is over positions, too.
NORMED = [
    name
    for name, case in CONVOLUTIONS.items()
    if hasattr(case.layer(), "attention_norm") and name not in LOCAL
]


@pytest.mark.parametrize("name", NORMED)
def test_a_batch_of_one_needs_another_norm_to_train(name):
    layer = LAYERS[name].layer(attention_norm="batch")
    shape = (1, 6, 5, 4)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = init_shapes(layer, x)  # initialising is possible
    with pytest.raises(ValueError, match="attention_norm='layer'"):
        jax.eval_shape(partial(layer.apply, mutable=["batch_stats"]), variables, x)
    out = (*shape[:-1], 6)
    assert jax.eval_shape(layer.apply, variables, x).shape == out  # inference
    for fields in (dict(attention_norm="layer"), dict(use_running_average=True)):
        other = layer.copy(**fields)
        step = partial(other.apply, mutable=["batch_stats"])
        assert jax.eval_shape(step, init_shapes(other, x), x)[0].shape == out


@pytest.mark.parametrize("name", NORMED)
def test_other_norms_have_no_statistics(name):
    for norm in ("layer", "none"):
        variables = init_shapes(LAYERS[name].layer(attention_norm=norm), compiled_case(name).x)
        assert "attention" not in variables.get("batch_stats", {})
        assert ("norm" in variables["params"]["attention"]) == (norm == "layer")


# Dtypes.


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_bfloat16_inputs_promote_with_float32_parameters_as_in_flax_conv(name):
    x = jax.ShapeDtypeStruct((2, 6, 5, 4), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        static, dynamic = (
            jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0]
            for layer in (nn.Conv(6, (3, 3)), CONVOLUTIONS[name].layer())
        )
    assert dynamic.dtype == static.dtype == jnp.float32


@pytest.mark.parametrize("name", [n for n in LAYERS if not hasattr(LAYERS[n].layer(), "dtype")])
def test_gates_keep_the_dtype_and_weigh_in_float32(name):
    layer, variables, x, *_ = compiled_case(name)
    apply = partial(layer.apply, mutable=["intermediates"])
    y, state = jax.eval_shape(apply, variables, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and y.shape == x.shape
    assert {w.dtype for w in jax.tree.leaves(state["intermediates"])} == {jnp.dtype("float32")}


# Errors.


PICTURES = (2, 6, 5, 4)
ERRORS = {
    # All of them.
    "*": [
        (dict(kernel_size=3), PICTURES, r"\(3, 3\)"),
        (dict(kernel_size=3), (2, 5, 5, 5, 4), r"\(3, 3, 3\)"),
        (dict(kernel_size=(3, 3)), (5, 4), r"\(5, 4\)"),
        (dict(kernel_size=(3, 3, 3, 3)), (2, 5, 5, 5, 5, 4), "1, 2 or 3"),
        (dict(padding="SAMME"), PICTURES, "unknown"),
    ],
    # All but DCDConv, which takes neither groups nor masks.
    "grouped": [
        (dict(feature_group_count=3), PICTURES, "must divide"),
        (dict(feature_group_count=4), PICTURES, "6 output"),
        (dict(mask=jnp.ones((3, 3))), PICTURES, "mask"),
    ],
    "lowered": [(dict(lowering="fast"), PICTURES, "'fast'")],
    "DCDConv": [
        (dict(feature_group_count=2), PICTURES, "grouped and depthwise"),
        (dict(mask=jnp.ones((3, 3, 4, 6))), PICTURES, "mask"),
        (dict(pool=0), PICTURES, "pool=0"),
    ],
    "ODConv": [(dict(lowering="outputs"), PICTURES, "tap attention")],
    "FDConv": [
        (dict(lowering="outputs"), PICTURES, "tap attention"),
        (dict(num_kernels=500), PICTURES, "from 1 to 126"),
    ],
    "FDConv, local": [
        (dict(lowering=name), PICTURES, "kernel for each sample") for name in ("outputs", "shared")
    ],
    "WarehouseConv": [
        *((dict(lowering=n), PICTURES, "kernel for each sample") for n in ("outputs", "shared")),
        (dict(in_ratio=0.75), PICTURES, "do not divide"),
        (dict(cell_ratio=0), PICTURES, "cell_ratio"),
        (dict(basis_ratio=0), PICTURES, "basis_ratio"),
    ],
    "PixelDynamicConv": [
        (dict(attention="local"), PICTURES, "'image'"),
        *((dict(lowering=n), PICTURES, "cannot do this") for n in ("taps", "patches", "samples")),
    ],
    "GatedConv, kernels": [
        (dict(granularity="layer"), PICTURES, "'slice'"),
        (dict(active=5), PICTURES, "active=5"),
        (dict(pruned=True), PICTURES, "pruned=True"),
    ],
    "RotatedConv, mixture": [
        (dict(pooling="sum"), PICTURES, "'mixture'"),
        (dict(mask=jnp.ones((3, 3, 4, 6)).at[0].set(0)), PICTURES, "mask would turn"),
        (dict(kernel_size=(3, 2)), PICTURES, "cannot be rotated"),
        (dict(kernel_size=(3,)), PICTURES[1:], "cannot be rotated"),
        (dict(kernel_size=(3, 3, 3)), (1, *PICTURES), "cannot be rotated"),
    ],
    "SpectralNormConv": [
        (dict(n_steps=0), PICTURES, "n_steps=0"),
        (dict(num_kernels=0), PICTURES, "num_kernels=0"),
    ],
}


def errors_of(name):
    yield from ERRORS["*"]
    if name != "DCDConv":
        yield from ERRORS["grouped"]
    layer = LAYERS[name].layer()
    if hasattr(layer, "lowering") and name != "DCDConv":
        yield dict(lowering="fast"), PICTURES, "'fast'"
    if hasattr(layer, "attention_norm"):
        yield dict(attention_norm="group"), PICTURES, "'group' is unknown"
    yield from ERRORS.get(name, ())


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_impossible_fields_are_refused(name):
    for fields, shape, message in errors_of(name):
        layer = LAYERS[name].layer(6, **{"kernel_size": (3, 3), **fields})
        with pytest.raises(ValueError) as error:
            jax.eval_shape(layer.init, jax.random.key(0), jnp.ones(shape))
        assert re.search(message, str(error.value)), (fields, str(error.value))
