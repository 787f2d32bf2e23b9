"""Counting parameters and multiply-adds, against counts by hand."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dyn.diagnostics import count_macs, count_parameters, kernel_similarity, layer_costs
from dyn.layers import CondConv, FDConv, ODConv, PixelDynamicConv, SqueezeExcite
from dyn.models import FCN, BasicBlock, Net2, ResNet
from dyn.ops import LOWERINGS, dynamic_conv


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def test_counts_the_numbers_in_a_tree_of_arrays_or_shapes():
    tree = {"a": jnp.ones((2, 3)), "b": [shape(4, 5), shape()], "c": {}}
    assert count_parameters(tree) == 6 + 20 + 1


def test_counts_matrix_products():
    assert count_macs(jnp.dot, shape(3, 4), shape(4, 5)) == 3 * 4 * 5
    # Batched: two products of [3, 4] and [4, 5]; and two contracted axes.
    assert count_macs(jnp.matmul, shape(2, 3, 4), shape(2, 4, 5)) == 2 * 3 * 4 * 5
    outer = lambda a, b: jnp.einsum("abc,bcd->ad", a, b)  # noqa: E731
    assert count_macs(outer, shape(2, 3, 4), shape(3, 4, 5)) == 2 * 3 * 4 * 5
    assert count_macs(jnp.add, shape(3), shape(3)) == 0


@pytest.mark.parametrize(
    ("fields", "inputs", "macs"),
    [
        # 2 samples of 7 * 6 outputs with 8 features, each of 3 * 3 * 4 numbers: padding counts.
        (dict(), (2, 7, 6, 4), 2 * 42 * 8 * 36),
        (dict(padding="VALID"), (2, 7, 6, 4), 2 * 20 * 8 * 36),
        (dict(strides=2), (2, 7, 6, 4), 2 * 12 * 8 * 36),
        # In 4 groups each output sees one channel.
        (dict(feature_group_count=4), (2, 7, 6, 4), 2 * 42 * 8 * 9),
        (dict(kernel_dilation=2, padding="VALID"), (2, 7, 6, 4), 2 * 3 * 2 * 8 * 36),
    ],
)
def test_counts_convolutions(fields, inputs, macs):
    conv = nn.Conv(8, (3, 3), **fields)
    variables = jax.eval_shape(conv.init, jax.random.key(0), shape(*inputs))
    assert count_macs(conv.apply, variables, shape(*inputs)) == macs


def test_counts_inside_whatever_carries_a_function():
    product = jnp.dot
    a = shape(3, 3)
    assert count_macs(jax.jit(product), a, a) == 27
    assert count_macs(jax.checkpoint(product), a, a) == 27
    assert count_macs(jax.vmap(product), shape(5, 3, 3), shape(5, 3, 3)) == 5 * 27

    @jax.custom_vjp
    def custom(a, b):
        return product(a, b)

    custom.defvjp(lambda a, b: (custom(a, b), None), lambda _, g: (g, g))
    assert count_macs(custom, a, a) == 27

    def scanned(a):
        return lax.scan(lambda c, _: (product(c, a), None), a, length=7)[0]

    assert count_macs(scanned, a) == 7 * 27
    assert count_macs(jax.jit(jax.checkpoint(scanned)), a) == 7 * 27
    assert count_macs(lambda a: lax.map(lambda row: a @ row, a), a) == 3 * 9
    assert count_macs(lambda a: lax.scan(lambda c, _: (scanned(c), None), a, length=2)[0], a) == (
        2 * 7 * 27
    )


def test_only_one_branch_of_a_condition_runs():
    def either(flag, a):
        return lax.cond(flag, lambda a: a @ a @ a, lambda a: a @ a, a)

    # The dearer one.
    assert count_macs(either, jax.ShapeDtypeStruct((), jnp.bool_), shape(3, 3)) == 2 * 27


# [2, 7, 6, 4] with three kernels [3, 3, 4, 8]: 42 positions of 8 * 36 products for each of 2 samples,
# and one multiply-add for each of the 3 * 288 numbers to mix a kernel, for each of 2 samples.
CONVOLUTION, MIXING = 2 * 42 * 288, 2 * 3 * 288


@pytest.mark.parametrize("lowering", [*LOWERINGS, "auto"])
def test_every_lowering_counts_the_same(lowering):
    def function(x, w, mix):
        return dynamic_conv(x, w, mix, lowering=lowering)

    args = shape(2, 7, 6, 4), shape(3, 3, 3, 4, 8), shape(2, 3)
    assert count_macs(function, *args) == CONVOLUTION + MIXING
    assert count_macs(jax.jit(function), *args) == CONVOLUTION + MIXING
    assert count_macs(jax.checkpoint(function), *args) == CONVOLUTION + MIXING

    def repeated(x, w, mix):
        return lax.scan(lambda c, _: (c, function(x, w, mix)), 0.0, length=5)[1]

    assert count_macs(repeated, *args) == 5 * (CONVOLUTION + MIXING)


@pytest.mark.parametrize("lowering", [name for name in LOWERINGS if name != "outputs"])
@pytest.mark.parametrize("num_kernels", [1, 3])
def test_tap_attention_is_elementwise_and_one_kernel_is_not_mixed(num_kernels, lowering):
    def function(x, w, mix, taps):
        return dynamic_conv(x, w, mix, taps=taps, lowering=lowering)

    mix = shape(2, num_kernels) if num_kernels > 1 else None
    args = shape(2, 7, 6, 4), shape(num_kernels, 3, 3, 4, 8), mix, shape(2, 3, 3)
    assert count_macs(function, *args) == CONVOLUTION + (MIXING if num_kernels > 1 else 0)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_grouped_dynamic_convolution_sees_a_share_of_the_channels(lowering):
    def function(x, w, mix):
        return dynamic_conv(x, w, mix, feature_group_count=4, lowering=lowering)

    # One of 4 channels, so a fourth of everything.
    args = shape(2, 7, 6, 4), shape(3, 3, 3, 1, 8), shape(2, 3)
    assert count_macs(function, *args) == (CONVOLUTION + MIXING) // 4


@pytest.mark.parametrize("lowering", ["outputs", "shared"])
def test_a_pixel_wise_mixture_is_a_convolution_with_each_kernel(lowering):
    def function(x, w, mix):
        return dynamic_conv(x, w, mix, lowering=lowering)

    args = shape(2, 7, 6, 4), shape(3, 3, 3, 4, 8), shape(2, 7, 6, 3)
    assert count_macs(function, *args) == 3 * CONVOLUTION


# A layer with 4 input and 8 output features and a squeezed vector of 16: the matrices of its attention
# have 16 * (4 + 4 + 8 + 9 + 3) numbers, used once for each sample.
ATTENTION = 2 * 16 * (4 + 4 + 8 + 9 + 3)


def layer_and_variables(**fields):
    layer = ODConv(8, (3, 3), num_kernels=3, **fields)
    return layer, jax.eval_shape(layer.init, jax.random.key(0), shape(2, 7, 6, 4))


def test_a_layer_counts_its_attention():
    layer, variables = layer_and_variables()
    macs = count_macs(layer.apply, variables, shape(2, 7, 6, 4))
    assert macs == CONVOLUTION + MIXING + ATTENTION


# Transformed, an operation counts as what its lowering does. These two do one convolution and one mixing.
@pytest.mark.parametrize("lowering", ["taps", "patches"])
def test_vmap_multiplies_the_count(lowering):
    layer, variables = layer_and_variables(lowering=lowering)
    over_inputs = jax.vmap(layer.apply, in_axes=(None, 0))
    macs = count_macs(over_inputs, variables, shape(5, 2, 7, 6, 4))
    assert macs == 5 * (CONVOLUTION + MIXING + ATTENTION)

    ensemble = jax.tree.map(lambda leaf: shape(5, *leaf.shape), variables)
    over_parameters = jax.vmap(layer.apply, in_axes=(0, None))
    macs = count_macs(over_parameters, ensemble, shape(2, 7, 6, 4))
    assert macs == 5 * (CONVOLUTION + MIXING + ATTENTION)

    over_both = jax.vmap(layer.apply)
    macs = count_macs(over_both, ensemble, shape(5, 2, 7, 6, 4))
    assert macs == 5 * (CONVOLUTION + MIXING + ATTENTION)


@pytest.mark.parametrize("lowering", ["patches", "taps"])
def test_a_gradient_counts_two_more_products_for_each_of_the_forward_s(lowering):
    layer, variables = layer_and_variables(lowering=lowering)

    def loss(variables, x):
        return layer.apply(variables, x).sum()

    macs = count_macs(jax.grad(loss, argnums=(0, 1)), variables, shape(2, 7, 6, 4))
    again = MIXING if lowering == "taps" else 0  # it mixes the kernels anew in backward
    assert macs == 3 * (CONVOLUTION + MIXING + ATTENTION) + again
    # For the inputs alone kernels need no gradient, and the forward's matrix products of attention
    # are followed by one each instead of two.
    macs = count_macs(jax.grad(loss, argnums=1), variables, shape(2, 7, 6, 4))
    assert macs == 3 * CONVOLUTION + 2 * MIXING + 2 * ATTENTION + again


SMALL = partial(ResNet, (1, 1), BasicBlock, num_classes=10, width=8, stem="small")
MODELS = {
    "odconv": (SMALL(conv=partial(ODConv, num_kernels=4)), shape(2, 8, 8, 3)),
    "fdconv": (SMALL(conv=partial(FDConv, num_kernels=4)), shape(2, 8, 8, 3)),
    "one routing a block": (SMALL(conv=CondConv, context="block"), shape(2, 8, 8, 3)),
    "pixels": (
        SMALL(conv=partial(PixelDynamicConv, num_kernels=2), context="carried_pixels"),
        shape(2, 8, 8, 3),
    ),
    "squeeze-excite": (SMALL(attention=SqueezeExcite), shape(2, 8, 8, 3)),
    "segmentation": (
        FCN(num_classes=5, backbone=partial(ResNet, (1, 1), BasicBlock, num_classes=None, width=8)),
        shape(2, 64, 64, 3),
    ),
    "series": (Net2(num_classes=4), shape(2, 40, 1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_costs_of_layers_add_up_to_the_model_s_and_flax_can_tabulate_it(name):
    model, x = MODELS[name]
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    costs = layer_costs(model, variables, x)
    whole = costs.pop("")
    assert whole.parameters == count_parameters(variables["params"])
    assert whole.macs == count_macs(model.apply, variables, x)
    assert whole.output == jax.eval_shape(model.apply, variables, x).shape
    outermost = [cost for path, cost in costs.items() if "/" not in path]
    assert sum(cost.parameters for cost in outermost) == whole.parameters
    # A head for pixels enlarges its logits by itself, in no submodule.
    inside = sum(cost.macs for cost in outermost)
    assert inside < whole.macs if name == "segmentation" else inside == whole.macs
    paths = list(costs)
    for path in paths:
        above = path.rpartition("/")[0]
        assert not above or paths.index(above) < paths.index(path)
        assert not above or costs[path].macs <= costs[above].macs
    assert f"{whole.parameters:,}" in nn.tabulate(model, jax.random.key(0))(jnp.zeros(x.shape))


def test_a_layer_s_cost_is_its_attention_s_and_its_convolution_s():
    model, x = MODELS["odconv"]
    costs = layer_costs(model, jax.eval_shape(model.init, jax.random.key(0), x), x)
    layer, attention = costs["stage1_block1/conv1"], costs["stage1_block1/conv1/attention"]
    assert layer.output == (2, 8, 8, 8)
    assert layer.macs - attention.macs == 2 * (8 * 8 + 4) * 9 * 8 * 8
    assert layer.parameters - attention.parameters == 4 * 9 * 8 * 8


def test_similarity_of_kernels_is_their_cosine_whatever_their_size(rng):
    kernels = jnp.asarray(rng.normal(size=(3, 3, 3, 2, 4)), jnp.float32)
    kernels = jnp.concatenate([kernels, -2 * kernels[:1], jnp.zeros_like(kernels[:1])])
    found = np.asarray(kernel_similarity(kernels))
    w = np.asarray(kernels, np.float64).reshape(5, -1)[:4]
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:4, :4], w @ w.T, atol=1e-6)
    np.testing.assert_allclose(found[3, 0], -1, atol=1e-6)
    assert not found[4].any()
    assert kernel_similarity(kernels.astype(jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="must be"):
        kernel_similarity(jnp.ones(3))
