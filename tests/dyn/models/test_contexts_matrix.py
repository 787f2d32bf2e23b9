"""Gradients of networks with every source of context and with every kind of block."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from layer_cases import assert_learns, filled, random_input

from dyn.layers import CondConv, ODConv, PixelDynamicConv
from dyn.models import BasicBlock, Bottleneck, EfficientNet, ResNet, efficientnet

pytestmark = pytest.mark.matrix

CONTEXTS = pytest.mark.parametrize(
    ("conv", "context"),
    [
        (ODConv, "input"),
        (CondConv, "block"),
        (ODConv, "carried"),
        (PixelDynamicConv, "carried_pixels"),
    ],
)


@CONTEXTS
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_gradient_reaches_all_parameters(block, conv, context):
    conv = partial(conv, num_kernels=2)
    fields = {"num_classes": 3, "width": 4, "stem": "small", "conv": conv, "context": context}
    assert_everything_learns(ResNet((1, 2), block, **fields))


@CONTEXTS
def test_gradient_reaches_all_parameters_of_inverted_blocks(conv, context, monkeypatch):
    monkeypatch.setattr(efficientnet, "STAGES", ((1, 3, 16, 1, 1), (6, 3, 16, 2, 2)))
    conv = partial(conv, num_kernels=2)
    fields = {"num_classes": 3, "width": 0.25, "stem": "small", "context": context}
    # The first stage and the depthwise convolutions of pixel-wise layers are static: they take no context.
    depthwise = None if conv.func is PixelDynamicConv else conv
    whole = {"dropout": 0.0, "drop_connect": 0.0, "dynamic_stages": (2, 3)}
    net = EfficientNet(**fields, **whole, conv=conv, depthwise=depthwise)
    assert_everything_learns(net)


def assert_everything_learns(net):
    x = random_input(3, 8, 8, 3)
    variables = filled(net, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        seen = {**variables, "params": params}
        return jnp.sum(net.apply(seen, x, train=True, mutable=["batch_stats"])[0] ** 2)

    assert_learns(gradient(variables["params"]))
