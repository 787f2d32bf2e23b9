"""Gradients of residual networks with every source of context and with both kinds of blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from layer_cases import assert_learns, filled, random_input

from dyn.layers import CondConv, ODConv, PixelDynamicConv
from dyn.models import BasicBlock, Bottleneck, ResNet

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize(
    ("conv", "context"),
    [
        (ODConv, "input"),
        (CondConv, "block"),
        (ODConv, "carried"),
        (PixelDynamicConv, "carried_pixels"),
    ],
)
def test_gradient_reaches_all_parameters(block, conv, context):
    conv = partial(conv, num_kernels=2)
    fields = {"num_classes": 3, "width": 4, "stem": "small", "conv": conv, "context": context}
    net, x = ResNet((1, 2), block, **fields), random_input(3, 8, 8, 3)
    variables = filled(net, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        seen = {**variables, "params": params}
        return jnp.sum(net.apply(seen, x, train=True, mutable=["batch_stats"])[0] ** 2)

    assert_learns(gradient(variables["params"]))
