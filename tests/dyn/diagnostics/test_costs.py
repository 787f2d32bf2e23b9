"""Parameters and multiply-adds, against counts by hand."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from convolution_cases import PORTABLE
from jax import lax
from layer_cases import init_shapes

from dyn.diagnostics import count_macs, count_parameters, layer_costs
from dyn.layers import CondConv, FDConv, Involution, ODConv, PixelDynamicConv, SqueezeExcite
from dyn.models import FCN, BasicBlock, Net2, ResNet
from dyn.ops import dynamic_conv


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def test_counts_elements_of_arrays_and_shapes():
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
    assert count_macs(conv.apply, init_shapes(conv, shape(*inputs)), shape(*inputs)) == macs


def test_counts_inside_transformed_functions():
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


def test_the_shards_of_a_batch_count_together():
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    rows, whole = jax.P("data"), jax.P()
    sharded = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert count_macs(sharded, shape(8, 16), shape(16, 32)) == 8 * 16 * 32


def test_a_condition_counts_as_its_most_expensive_branch():
    def either(flag, a):
        return lax.cond(flag, lambda a: a @ a @ a, lambda a: a @ a, a)

    assert count_macs(either, jax.ShapeDtypeStruct((), jnp.bool_), shape(3, 3)) == 2 * 27


# [2, 7, 6, 4] with three kernels [3, 3, 4, 8]: 42 positions of 8 * 36 products for each of 2 samples,
# and one multiply-add for each of the 3 * 288 numbers to mix a kernel, for each of 2 samples.
CONVOLUTION, MIXING = 2 * 42 * 288, 2 * 3 * 288


@pytest.mark.parametrize("lowering", [*PORTABLE, "auto"])
def test_every_lowering_counts_the_same(lowering):
    convolve = partial(dynamic_conv, lowering=lowering)
    x, kernels, mix = shape(2, 7, 6, 4), shape(3, 3, 3, 4, 8), shape(2, 3)
    assert count_macs(convolve, x, kernels, mix) == CONVOLUTION + MIXING
    assert count_macs(jax.checkpoint(convolve), x, kernels, mix) == CONVOLUTION + MIXING

    def repeated(*args):
        return lax.scan(lambda c, _: (c, convolve(*args)), 0.0, length=5)[1]

    assert count_macs(repeated, x, kernels, mix) == 5 * (CONVOLUTION + MIXING)
    # With 4 groups, each output sees one of 4 channels.
    grouped = partial(convolve, feature_group_count=4)
    assert count_macs(grouped, x, shape(3, 3, 3, 1, 8), mix) == (CONVOLUTION + MIXING) // 4
    if lowering in ("outputs", "shared"):
        assert count_macs(convolve, x, kernels, shape(2, 7, 6, 3)) == 3 * CONVOLUTION  # pixel-wise
    if lowering != "outputs":  # attention over taps is elementwise, and one kernel is not mixed
        taps = lambda x, w, mix, taps: convolve(x, w, mix, taps=taps)  # noqa: E731
        assert count_macs(taps, x, kernels, mix, shape(2, 3, 3)) == CONVOLUTION + MIXING
        assert count_macs(taps, x, shape(1, 3, 3, 4, 8), None, shape(2, 3, 3)) == CONVOLUTION


# A layer with 4 input and 8 output features and a squeezed vector of 16: the matrices of its attention
# have 16 * (4 + 4 + 8 + 9 + 3) numbers, used once for each sample.
ATTENTION = 2 * 16 * (4 + 4 + 8 + 9 + 3)


def layer_and_variables(**fields):
    layer = ODConv(8, (3, 3), num_kernels=3, **fields)
    return layer, init_shapes(layer, shape(2, 7, 6, 4))


def test_a_layer_counts_its_attention():
    layer, variables = layer_and_variables()
    macs = count_macs(layer.apply, variables, shape(2, 7, 6, 4))
    assert macs == CONVOLUTION + MIXING + ATTENTION


# A transformed operation counts as its lowering. These two do one convolution and one mixing.
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
def test_a_gradient_counts_three_times(lowering):
    layer, variables = layer_and_variables(lowering=lowering)

    def loss(variables, x):
        return layer.apply(variables, x).sum()

    macs = count_macs(jax.grad(loss, argnums=(0, 1)), variables, shape(2, 7, 6, 4))
    again = MIXING if lowering == "taps" else 0  # it mixes the kernels again in backward
    assert macs == 3 * (CONVOLUTION + MIXING + ATTENTION) + again
    # For the inputs alone kernels need no gradient, and the forward's matrix products of attention
    # are followed by one each instead of two.
    macs = count_macs(jax.grad(loss, argnums=1), variables, shape(2, 7, 6, 4))
    assert macs == 3 * CONVOLUTION + 2 * MIXING + 2 * ATTENTION + again


Small = partial(ResNet, (1, 1), BasicBlock, num_classes=10, width=8, stem="small")
MODELS = {
    "odconv": Small(conv=partial(ODConv, num_kernels=4)),
    "fdconv": Small(conv=partial(FDConv, num_kernels=4, min_features=0)),
    "one context per block": Small(conv=CondConv, context="block"),
    "pixels": Small(conv=partial(PixelDynamicConv, num_kernels=2), context="carried_pixels"),
    "a kernel per position": Small(conv=Involution),
    "squeeze-excite": Small(attention=SqueezeExcite),
    "segmentation": FCN(num_classes=5, backbone=partial(Small, num_classes=None)),
    "series": Net2(num_classes=4),
}


@pytest.mark.parametrize("name", MODELS)
def test_costs_of_layers_add_up_to_those_of_the_model(name):
    model, x = MODELS[name], shape(2, 40, 1) if name == "series" else shape(2, 16, 16, 3)
    variables = init_shapes(model, x)
    costs = layer_costs(model, variables, x)
    total = costs.pop("")
    assert total.parameters == count_parameters(variables["params"])
    assert total.macs == count_macs(model.apply, variables, x)
    assert total.output == jax.eval_shape(model.apply, variables, x).shape
    outermost = [cost for path, cost in costs.items() if "/" not in path]
    assert sum(cost.parameters for cost in outermost) == total.parameters
    # A segmentation head resizes its logits outside of submodules.
    inside = sum(cost.macs for cost in outermost)
    assert inside < total.macs if name == "segmentation" else inside == total.macs
    paths = list(costs)
    for path in paths:
        parent = path.rpartition("/")[0]
        assert not parent or paths.index(parent) < paths.index(path)
        assert not parent or costs[path].macs <= costs[parent].macs
    if name == "odconv":
        layer, attention = costs["stage1_block1/conv1"], costs["stage1_block1/conv1/attention"]
        assert layer.output == (2, 16, 16, 8)
        assert layer.macs - attention.macs == 2 * (16 * 16 + 4) * 9 * 8 * 8
        assert layer.parameters - attention.parameters == 4 * 9 * 8 * 8
