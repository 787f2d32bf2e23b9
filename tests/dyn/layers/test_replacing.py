"""Layers that take the place of each `nn.Conv` of a network which knows nothing of them."""

from functools import partial

import flax.linen as nn
import flax_resnet
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_learns, filled, init_shapes, random_input, shapes_of
from warm_starts import assert_same, initialised

from dyn.interop import warm_start
from dyn.layers import Conv, DCDConv, DynamicConv, FDConv, ODConv, RotatedConv, replace_convs

X = random_input(2, 6, 5, 4)
odconv = partial(ODConv, num_kernels=2)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(4, (3, 3), use_bias=False)(x))


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.remat(Block)(name="block")(x), None


class Network(nn.Module):
    """A network of `setup`, whose convolution is called twice, over a scanned and rematerialised block."""

    def setup(self):
        self.shared = nn.Conv(4, (3, 3), kernel_dilation=2)
        axes = {"params": 0, "attention": 0, "intermediates": 0}
        self.body = nn.scan(Body, variable_axes=axes, split_rngs={"params": True}, length=3)()
        self.up = nn.ConvTranspose(4, (2, 2))
        self.local = nn.ConvLocal(3, (1, 1))

    def __call__(self, x):
        return self.local(self.up(self.encode(x)))

    def encode(self, x):
        return self.body(self.shared(self.shared(x)), None)[0]


def test_setup_scan_and_remat():
    net = replace_convs(Network(), odconv)
    shapes, static = (shapes_of(init_shapes(n, X)["params"]) for n in (net, Network()))
    for name, shape in static.items():
        if name.endswith("kernel") and name[:2] in ("sh", "bo"):
            stacked = name.startswith("body")
            shape = (*shape[:stacked], 2, *shape[stacked:])
        assert shapes[name] == shape  # also of the layers that stay
    assert shapes["body/block/Conv_0/kernel"] == (3, 2, 3, 3, 4, 4)

    variables = filled(net, X)

    @jax.jit
    def differentiate(params):
        def loss(params):
            return jnp.sum(net.apply({**variables, "params": params}, X) ** 2)

        return jax.grad(loss)(params)

    assert_learns(differentiate(variables["params"]))
    codes = jax.eval_shape(partial(net.apply, method="encode"), variables, X)
    assert codes.shape == (2, 6, 5, 4)
    _, state = jax.eval_shape(partial(net.apply, mutable=["intermediates"]), variables, X)
    assert len(state["intermediates"]["shared"]["attention"]["weights"]) == 2


@pytest.mark.parametrize("conv", [odconv, DynamicConv], ids=["ODConv", "DynamicConv"])
def test_flax_s_resnet_starts_as_it_was_trained(conv):
    static = flax_resnet.ResNet()
    net = replace_convs(static, conv, lambda path, _: path != ("conv_init",))
    x = random_input(2, 16, 16, 3)
    trained, fresh = filled(static, x), initialised(net, x)
    variables = warm_start(fresh, trained, key=jax.random.key(0))
    assert variables["params"]["conv_init"]["kernel"].shape == (3, 3, 3, 8)
    assert variables["params"]["ResNetBlock_0"]["Conv_1"]["kernel"].ndim == 5
    y, expected = jax.jit(
        lambda v, t: (net.apply(v, x, train=False), static.apply(t, x, train=False))
    )(variables, trained)
    assert_same(y, expected)


def test_stacked_layers_start_as_they_were_trained():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "attention": 0}
            stack = nn.scan(Body, variable_axes=axes, split_rngs={"params": True}, length=2)
            return stack(name="stack")(x, None)[0]

    static, net = Stack(), replace_convs(Stack(), odconv)
    trained, fresh = filled(static, X), initialised(net, X)
    with pytest.raises(ValueError, match=r"jax\.vmap\(warm_start\)"):
        warm_start(fresh, trained, noise=0)
    variables = jax.vmap(partial(warm_start, noise=0))(fresh, trained)
    assert_same(net.apply(variables, X), static.apply(trained, X))


def test_a_field_of_the_network_goes_to_the_layer():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            fields = {"strides": 2, "padding": 1, "feature_group_count": 2, "dtype": jnp.bfloat16}
            mask = np.tril(np.ones((3, 3, 2, 6)))
            return nn.Conv(6, (3, 3), **fields, mask=mask, use_bias=False, name="conv")(x)

    net = replace_convs(Net(), Conv)
    variables = filled(net, X)
    assert shapes_of(variables) == shapes_of(init_shapes(Net(), X))
    with jax.numpy_dtype_promotion("standard"):
        expected = Net().apply(variables, X)
    y = net.apply(variables, X)
    assert y.dtype == expected.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(float), expected.astype(float), rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="feature_group_count=2"):
        init_shapes(replace_convs(Net(), DCDConv), X)


class Odd(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x)


def test_what_is_not_replaced():
    class Own(nn.Conv):
        pass

    for layer in (
        Own(4, (3, 3)),
        nn.ConvTranspose(4, (3, 3)),
        nn.WeightNorm(nn.Conv(4, (3, 3))),
        FDConv(4, (3, 3)),  # has an `nn.Conv` inside
    ):
        with pytest.raises(ValueError, match="no layer of Odd was replaced"):
            init_shapes(replace_convs(Odd(layer), odconv), X)
    with pytest.raises(ValueError, match="leaves them all out"):
        init_shapes(replace_convs(Block(), odconv, lambda path, conv: conv.features > 4), X)
    own = nn.Conv(4, (3, 3), conv_general_dilated=jax.lax.conv_general_dilated)
    with pytest.raises(ValueError, match=r"layer has a function of its own.*where="):
        init_shapes(replace_convs(Odd(own), odconv), X)


def test_layers_in_fields_and_networks_in_networks():
    inner = replace_convs(nn.Sequential([nn.Conv(4, (3, 3)), nn.relu]), odconv)
    shapes = shapes_of(init_shapes(Odd(inner), X)["params"])
    assert shapes["layer/layers_0/kernel"] == (2, 3, 3, 4, 4)
    again = replace_convs(Odd(nn.Sequential([nn.Conv(4, (3, 3))])), odconv)
    assert shapes_of(init_shapes(again, X)["params"])["layer/layers_0/kernel"][0] == 2


def test_equal_replacements_are_equal():
    """So that a jit whose static argument is the network compiles once."""
    assert replace_convs(Block(), odconv) == replace_convs(Block(), odconv)
    assert hash(replace_convs(Block(), odconv)) == hash(replace_convs(Block(), odconv))
    assert replace_convs(Block(), odconv) != replace_convs(Block(), RotatedConv)
