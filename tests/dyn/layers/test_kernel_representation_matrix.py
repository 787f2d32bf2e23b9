"""KernelRepresentation carried through a whole ResNet-18."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from layer_cases import assert_learns, filled, random_input

from dyn.layers import ODConv
from dyn.models import ResNet18

pytestmark = pytest.mark.matrix


def test_every_contribution_to_a_resnet18_has_a_gradient():
    conv = partial(ODConv, num_kernels=2, attention_norm="none", lowering="shared")
    net = ResNet18(
        num_classes=5, width=4, stem="small", conv=conv, context="carried", representation=8
    )
    x = random_input(2, 8, 8, 3)
    params = filled(net, x)["params"]

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = net.apply({"params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(logits**2)

        return jax.grad(loss)(params)

    gradient = gradient(params)["representation"]
    convolutions = itertools.product((1, 2, 3, 4), (1, 2), (1, 2))
    contributions = {f"contribution_stage{s}_block{b}_conv{c}" for s, b, c in convolutions}
    assert set(gradient) == contributions | {"initial", "norm", "hidden", "update"}
    assert_learns(gradient)
