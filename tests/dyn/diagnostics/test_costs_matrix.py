"""Costs of networks of all kinds, compared with flax's own table."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dyn.layers import CondConv, FDConv, ODConv, PixelDynamicConv, SqueezeExcite
from dyn.models import FCN, BasicBlock, Net2, ResNet
from tests.dyn.diagnostics.test_costs import assert_costs_add_up, shape

pytestmark = pytest.mark.matrix

Small = partial(ResNet, (1, 1), BasicBlock, num_classes=10, width=8, stem="small")
Backbone = partial(ResNet, (1, 1), BasicBlock, num_classes=None, width=8)
PICTURES = shape(2, 8, 8, 3)
MODELS = {
    "odconv": (Small(conv=partial(ODConv, num_kernels=4)), PICTURES),
    "fdconv": (Small(conv=partial(FDConv, num_kernels=4)), PICTURES),
    "one context per block": (Small(conv=CondConv, context="block"), PICTURES),
    "pixels": (
        Small(conv=partial(PixelDynamicConv, num_kernels=2), context="carried_pixels"),
        PICTURES,
    ),
    "squeeze-excite": (Small(attention=SqueezeExcite), PICTURES),
    "segmentation": (FCN(num_classes=5, backbone=Backbone), shape(2, 64, 64, 3)),
    "series": (Net2(num_classes=4), shape(2, 40, 1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_costs_add_up(name):
    model, x = MODELS[name]
    _, total = assert_costs_add_up(model, x)
    table = nn.tabulate(model, jax.random.key(0))(jnp.zeros(x.shape))
    assert f"{total.parameters:,}" in table
