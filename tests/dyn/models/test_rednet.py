"""RedNets, and residual networks with decoupled dynamic filters: published sizes, and a training step."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from layer_cases import assert_learns, filled, init_shapes, random_input, shapes_of

from dyn.diagnostics import count_parameters
from dyn.layers import DecoupledDynamicFilter
from dyn.models import (
    RedNet,
    RedNet26,
    RedNet38,
    RedNet50,
    RedNet101,
    RedNet152,
    ResNet50,
    ResNet101,
)
from dyn.models.backbone import convolve_spatially

LARGE = pytest.mark.matrix
FILTERS = {"conv": convolve_spatially(DecoupledDynamicFilter)}
ADDED = {"conv": convolve_spatially(partial(DecoupledDynamicFilter, combine="add"))}


@pytest.mark.parametrize(
    ("network", "fields", "parameters"),
    [
        (RedNet26, {}, 9_233_166),
        pytest.param(RedNet38, {}, 12_386_986, marks=LARGE),
        pytest.param(RedNet50, {}, 15_540_806, marks=LARGE),
        pytest.param(RedNet101, {}, 25_652_950, marks=LARGE),
        pytest.param(RedNet152, {}, 33_984_582, marks=LARGE),
        pytest.param(ResNet50, FILTERS, 16_843_748, marks=LARGE),
        pytest.param(ResNet50, ADDED, 16_843_748, marks=LARGE),
        pytest.param(ResNet101, FILTERS, 28_146_912, marks=LARGE),
    ],
)
def test_published_number_of_parameters(network, fields, parameters):
    net = network(num_classes=1000, **fields)
    shapes = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    assert count_parameters(shapes["params"]) == parameters


@pytest.mark.matrix
def test_a_small_rednet_trains():
    net = RedNet(stage_sizes=(1,), num_classes=3, width=8)
    x = random_input(2, 16, 16, 3)
    variables = filled(net, x, scale=0.1)
    params = shapes_of(variables["params"])
    # Groups of 16 channels or more, and 7x7 and 3x3 kernels.
    assert params["stage1_block1/conv2/attention/kernel/bias"] == (49,)
    assert params["stem/conv2/attention/kernel/bias"] == (9,)

    @jax.jit
    def train(params):
        def loss(params):
            y, state = net.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(y * random_input(*y.shape, seed=3)), state

        return jax.grad(loss, has_aux=True)(params)

    gradient, state = train(variables["params"])
    assert_learns(gradient)
    assert shapes_of(state["batch_stats"]) == shapes_of(variables["batch_stats"])
