"""All layers under vmap and remat, and their gradients by finite differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from layer_cases import (
    DENSE,
    LAYERS,
    assert_trees_close,
    compile_training,
    compiled_case,
    filled,
    init_shapes,
    random_input,
    shapes_of,
)

from dyn.layers import KernelShape, Warehouse, WarehouseConv
from dyn.schedules import set_blend

pytestmark = pytest.mark.matrix

CLOSE = dict(rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_batch_axes_and_vmap_are_the_flat_batch(name):
    _, variables, x, apply, *_ = compiled_case(name)
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
    layer, variables, x, apply, *_ = compiled_case(name)
    members = [variables, filled(layer, x, seed=1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    got = jax.jit(jax.vmap(apply, in_axes=(0, None)))(stacked, x)
    for y, member in zip(got, members, strict=True):
        np.testing.assert_allclose(y, apply(member, x), **CLOSE)


@pytest.mark.parametrize("name", LAYERS)
def test_remat_changes_neither_names_nor_numbers(name):
    case, (_, variables, x, _, train, _) = LAYERS[name], compiled_case(name)
    again = nn.remat(type(case.layer()))(*case.args, **getattr(case.make, "keywords", {}))
    assert shapes_of(init_shapes(again, x)) == shapes_of(variables)
    (got, (y, _)), gradient = compile_training(again)(variables, x)
    (want, (wanted, _)), wanted_gradient = train(variables, x)
    results, wants = (got, y, gradient), (want, wanted, wanted_gradient)
    assert_trees_close(results, wants, rtol=1e-3, atol=1e-4)


def test_a_shared_layer_may_be_rematerialised():
    class Net(nn.Module):
        conv: type = WarehouseConv

        @nn.compact
        def __call__(self, x):
            cells = Warehouse((KernelShape((3, 3), 4, 4),) * 2, name="warehouse")
            for place in range(2):
                x = self.conv(4, (3, 3), warehouse=cells, place=place, name=f"conv{place}")(x)
            return x

    x = random_input(3, 5, 5, 4)
    variables = filled(Net(), x)

    def gradient(net):
        return jax.jit(jax.grad(lambda v: jnp.sum(net.apply(v, x) ** 2)))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        gradient(Net(nn.remat(WarehouseConv)))["params"],
        gradient(Net())["params"],
    )


# The usual form of each method, and others with different code.
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
    # The test has three features.
    "Involution": ("Involution", dict(groups=1)),
    "DecoupledDynamicFilter": ("DecoupledDynamicFilter", dict(heads=1)),
    "DecoupledDynamicFilter, add": ("DecoupledDynamicFilter", dict(heads=3, combine="add")),
    "SequenceDynamicConv": ("SequenceDynamicConv", dict(heads=3)),
    "SequenceDynamicConv, renormalised": (
        "SequenceDynamicConv",
        dict(heads=1, renorm_padding=True),
    ),
    "FrequencyDynamicConv, dilated": (
        "FrequencyDynamicConv",
        dict(axis="time", dilations=(1, (1, 2))),
    ),
    "CBAM, no norm": ("CBAM", dict(spatial_norm="none")),
}


def smooth(variables):
    """Moves random variables away from kinks and steep slopes, where finite differences are wrong.

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
                return np.where(np.arange(leaf.size) % 2, -5.0, 5.0)  # on and off
        return leaf

    return jax.tree_util.tree_map_with_path(moved, variables)


def converge_power_iteration(variables):
    """Converges the power iteration of `SpectralNormConv`.

    The gradient through u, which the method leaves out, is zero there.
    """
    kernel = variables["params"]["kernel"]
    matrices = kernel.reshape(len(kernel), -1, kernel.shape[-1])
    variables["batch_stats"]["u"] = np.stack([np.linalg.svd(m)[2][0] for m in matrices])
    return variables


@pytest.mark.parametrize("form", FORMS)
def test_gradients_by_finite_differences(form):
    """With respect to parameters, inputs and context; differences do not see the gradient of hard gates."""
    name, fields = FORMS[form]
    case = LAYERS[name]
    args, shape = (), (2, 4, 3, 2)
    if name in DENSE:
        args, shape = (3,), (3, 4)
    elif case.args:
        fields = {"strides": 2, **fields}
        size = fields.pop("kernel_size", (3, 3) if name.startswith("RotatedConv") else (3, 2))
        args, shape = (3, size), (2, *(4, 3)[: len(size)], 2)
    layer = case.layer(*args, **fields, param_dtype=jnp.float64)
    # flax's norms need promotion in float64.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        x = random_input(*shape, dtype=np.float64)
        inputs = [x]
        if case.looks_at and not fields.get("static"):
            context = case.looks_at(x)
            inputs.append(0.1 + jnp.abs(random_input(*context.shape, seed=2, dtype=np.float64)))
        variables = set_blend(smooth(filled(layer, *inputs, dtype=np.float64)), 0.25)
        if name == "SpectralNormConv":
            variables = converge_power_iteration(variables)
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
