"""Blocks that are computed again: every network, with modules that blocks share, and every policy."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_policies
from layer_cases import assert_trees_close, filled, init_shapes, random_input, shapes_of
from products import thin_out
from residuals import count_residuals, make_loss

from dyn.layers import ODConv, PixelDynamicConv, share_kernels
from dyn.models import BasicBlock, ConvNeXt, MobileNetV2, ResNet, mobilenet

pytestmark = pytest.mark.matrix

Small = partial(ResNet, (1, 1), BasicBlock, 3, width=4, stem="small")
X = random_input(2, 6, 6, 3)
NETWORKS = {
    "resnet": partial(Small, conv=partial(ODConv, num_kernels=2)),
    "carried": partial(
        Small,
        conv=partial(PixelDynamicConv, num_kernels=2),
        context="carried_pixels",
        representation=4,
    ),
    "warehouses": lambda **fields: share_kernels(
        lambda conv: Small(conv=conv, **fields), X, cell_ratio=2, basis_ratio=0.5
    ),
    "convnext": partial(
        ConvNeXt,
        num_classes=3,
        width=8,
        stem="small",
        stage_sizes=(1,),
    ),
    "mobilenet": partial(
        MobileNetV2,
        num_classes=3,
        width=0.1,
        stem="small",
        dropout=0.0,
        conv=partial(ODConv, num_kernels=2),
    ),
}


@pytest.mark.parametrize("name", thin_out(NETWORKS, step=2))
def test_keeps_less_for_the_same_gradient_under_the_same_names(name, monkeypatch):
    # Wide blocks, beside which the 1280 features after them, which are in no block, are few.
    monkeypatch.setattr(mobilenet, "STAGES", ((1, 16, 1, 1), (60, 16, 1, 1)))
    nets = [
        NETWORKS[name](remat=remat) for remat in (True, checkpoint_policies.dots_saveable, False)
    ]
    variables = filled(nets[-1], X)
    for net in nets:
        assert shapes_of(init_shapes(net, X)) == shapes_of(variables)
    losses = [make_loss(net, variables, X) for net in nets]
    least, policy, most = (count_residuals(loss, variables["params"]) for loss in losses)
    assert least < policy < most and least < most / 2
    *others, want = (jax.jit(jax.grad(loss, has_aux=True))(variables["params"]) for loss in losses)
    for got in others:
        assert_trees_close(got, want, rtol=1e-3, atol=1e-4)


def test_initial_values_are_the_same():
    values = [
        jax.jit(Small(remat=remat).init)(jax.random.key(0), X)["params"] for remat in (False, True)
    ]
    jax.tree.map(np.testing.assert_array_equal, *values)
