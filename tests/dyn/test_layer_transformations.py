"""All the layers of the catalogue under jit, vmap and remat; their gradients; serialised."""

import functools

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from layer_cases import (
    LAYERS,
    assert_trees_close,
    filled,
    init_shapes,
    random_input,
    shapes_of,
    usual,
)

from dyn.schedules import set_blend

CLOSE = dict(rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_input_gives_exactly_the_same_output(name):
    _, variables, x, apply, *_ = usual(name)
    first = apply(variables, x)
    np.testing.assert_array_equal(apply(variables, x), first)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_or_not_the_numbers_are_the_same(name):
    layer, variables, x, apply, *_ = usual(name)
    np.testing.assert_allclose(layer.apply(variables, x), apply(variables, x), **CLOSE)


@pytest.mark.parametrize("name", LAYERS)
def test_batch_axes_and_vmap_are_the_flat_batch(name):
    _, variables, x, apply, *_ = usual(name)
    want = apply(variables, x)
    two = x.reshape(2, 2, *x.shape[1:])
    np.testing.assert_allclose(apply(variables, two).reshape(want.shape), want, **CLOSE)
    np.testing.assert_allclose(apply(variables, x[0]), want[0], **CLOSE)
    mapped = jax.vmap(apply, in_axes=(None, 0))(variables, two)
    np.testing.assert_allclose(mapped.reshape(want.shape), want, **CLOSE)
    if LAYERS[name].looks_at:
        context = random_input(*LAYERS[name].looks_at(x).shape, seed=4)
        want = apply(variables, x, context)
        got = apply(variables, two, context.reshape(2, 2, *context.shape[1:]))
        np.testing.assert_allclose(got.reshape(want.shape), want, **CLOSE)


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_parameters_is_an_ensemble(name):
    layer, variables, x, apply, *_ = usual(name)
    members = [variables, filled(layer, x, seed=1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    got = jax.jit(jax.vmap(apply, in_axes=(0, None)))(stacked, x)
    for y, member in zip(got, members, strict=True):
        np.testing.assert_allclose(y, apply(member, x), **CLOSE)


@pytest.mark.parametrize("name", LAYERS)
def test_variables_survive_serialisation(name):
    variables = usual(name).variables
    blank = jax.tree.map(jnp.zeros_like, variables)
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(variables))
    assert shapes_of(restored) == shapes_of(variables)
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


# Gradients.


def value_and_gradient(layer):
    """Compiled, in training: of a random weighing of the outputs, with the new statistics.

    Weighed, because a norm at the end of a layer could keep the sum of their squares constant.
    """

    @jax.jit
    def function(params, others, x):
        def loss(params):
            y, state = layer.apply({"params": params, **others}, x, mutable=["batch_stats"])
            return jnp.sum(y * random_input(*y.shape, seed=6)), state

        return jax.value_and_grad(loss, has_aux=True)(params)

    return function


@functools.cache
def trained(name):
    """The usual layer's `value_and_gradient`, its parameters, and its other variables."""
    layer, variables, *_ = usual(name)
    params = variables["params"]
    others = {key: value for key, value in variables.items() if key != "params"}
    return value_and_gradient(layer), params, others


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name):
    function, params, others = trained(name)
    x = usual(name).x
    _, gradient = function(params, others, x)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)
    # Blank inputs have no variance for a norm to divide by.
    for g in jax.tree.leaves(function(params, others, jnp.zeros_like(x))):
        assert np.isfinite(g).all()


@pytest.mark.parametrize("name", LAYERS)
def test_remat_changes_neither_names_nor_numbers(name):
    case, x = LAYERS[name], usual(name).x
    function, params, others = trained(name)
    again = nn.remat(type(case.layer()))(*case.args, **getattr(case.make, "keywords", {}))
    assert shapes_of(init_shapes(again, x)) == shapes_of(usual(name).variables)
    got, want = value_and_gradient(again)(params, others, x), function(params, others, x)
    assert_trees_close(got, want, rtol=1e-3, atol=1e-4)


# Finite differences.

# Forms of the methods beside their usual ones.
FORMS = {
    **{name: (name, {}) for name in LAYERS},
    "ODConv, one kernel": ("ODConv", dict(num_kernels=1)),
    "ODConv, pointwise": ("ODConv", dict(kernel_size=(1, 1), num_kernels=3)),
    "DynamicConv, 1-D": ("DynamicConv", dict(kernel_size=(3,))),
    "DCDConv, 1-D": ("DCDConv", dict(kernel_size=(3,))),
    "WarehouseConv, taps": ("WarehouseConv", dict(lowering="taps", out_ratio=0.5)),
    "WarehouseConv, patches": ("WarehouseConv", dict(lowering="patches", out_ratio=0.5)),
    "PixelDynamicConv, image": ("PixelDynamicConv", dict(attention="image")),
    "PixelDynamicConv, not strided": ("PixelDynamicConv", dict(strides=1)),
    "GatedConv, static slices": ("GatedConv, slices", dict(static=True)),
    "GatedConv, two filters": ("GatedConv, filters", dict(active=2)),
    "RotatedConv, mixture": ("RotatedConv, mixture", dict(num_kernels=2)),
    "RotatedConv, mean": ("RotatedConv, max", dict(pooling="mean")),
    "RotatedConv, attention": ("RotatedConv, max", dict(pooling="attention")),
    "SpectralNormConv, one kernel": ("SpectralNormConv", dict(num_kernels=1)),
    "CBAM, no norm": ("CBAM", dict(spatial_norm="none")),
}


def smooth(variables):
    """Takes random variables to where finite differences are right: far from kinks, and not too steep.

    With a positive context every squeezed number is then beyond the kink of its ReLU.
    """

    def moved(path, leaf):
        keys = [k.key for k in path]
        match keys:
            case [*_, "attention", "squeeze", "kernel"]:
                return np.abs(leaf) + 0.1
            case [*_, "attention", "norm", "bias"]:
                return leaf + 4.0
            case [*_, "attention", "channel" | "filter" | "spatial" | "kernel", "kernel"]:
                return 0.2 * leaf  # logits of squeezed numbers of that size
            case [*_, "reduce", "bias"]:
                return np.where(np.arange(leaf.size) % 2, -5.0, 5.0)  # those off, too
        return leaf

    return jax.tree_util.tree_map_with_path(moved, variables)


def at_its_fixed_point(variables):
    """The power iteration of `SpectralNormConv` converged: the part of the gradient that goes through u,
    which the method leaves out, is then zero.
    """
    kernel = variables["params"]["kernel"]
    matrices = kernel.reshape(len(kernel), -1, kernel.shape[-1])
    variables["batch_stats"]["u"] = np.stack([np.linalg.svd(m)[2][0] for m in matrices])
    return variables


@pytest.mark.parametrize("form", FORMS)
def test_gradients_by_finite_differences(form):
    """Towards parameters, inputs and context; hard gates have no gradient that differences would show."""
    name, fields = FORMS[form]
    case = LAYERS[name]
    args, shape = (), (2, 4, 3, 2)
    if name == "DCDDense":
        args, shape = (3,), (3, 4)
    elif case.args:
        fields = {"strides": 2, **fields}
        size = fields.pop("kernel_size", (3, 3) if name.startswith("RotatedConv") else (3, 2))
        args, shape = (3, size), (2, *(4, 3)[: len(size)], 2)
    layer = case.layer(*args, **fields, param_dtype=jnp.float64)
    # flax's norms promote by themselves in float64.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        x = random_input(*shape, dtype=np.float64)
        inputs = [x]
        if case.looks_at and not fields.get("static"):
            context = case.looks_at(x)
            inputs.append(0.1 + jnp.abs(random_input(*context.shape, seed=2, dtype=np.float64)))
        variables = set_blend(smooth(filled(layer, *inputs, dtype=np.float64)), 0.25)
        if name == "SpectralNormConv":
            variables = at_its_fixed_point(variables)
        params = variables.pop("params")
        constant = {}
        if name.startswith("GatedConv"):
            constant = {"attention": params.pop("attention")}
            inputs, context = inputs[:1], inputs[1:]
        else:
            context = []

        @jax.jit
        def function(params, *inputs):
            params = {**params, **constant}
            return layer.apply({"params": params, **variables}, *inputs, *context)

        check_grads(function, (params, *inputs), 1, ["rev"], atol=1e-6, rtol=1e-6, eps=1e-6)
