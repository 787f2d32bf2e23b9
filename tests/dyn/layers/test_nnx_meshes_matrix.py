"""Layers as NNX modules on meshes: the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from layer_cases import LAYERS, assert_trees_close, random_input
from sharded_steps import make_mesh

pytestmark = pytest.mark.matrix


@nnx.jit
def train(model, x):
    """Returns the loss, the gradient of the parameters, and the statistics after the step."""

    def loss(model):
        y = model(x, mutable=["batch_stats"])
        return jnp.sum(y * random_input(*y.shape, seed=6))

    value, gradient = nnx.value_and_grad(loss)(model)
    return value, gradient, nnx.state(model, nnx.BatchStat)


@pytest.mark.parametrize(
    ("shape", "axes"), [((4,), "explicit"), ((2, 2), "explicit"), ((4,), "auto")]
)
@pytest.mark.parametrize("name", ["ODConv", "WarehouseConv", "CBAM"])
def test_a_bridged_layer_has_the_numbers_of_one_device(name, shape, axes):
    layer, x = LAYERS[name].layer(), random_input(*LAYERS[name].shape)
    model = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(x)
    definition, state = nnx.split(model)
    state = jax.device_get(state)
    mesh = make_mesh(shape, axes)
    placed = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    got = train(nnx.merge(definition, placed), sharded)
    assert_trees_close(got, train(nnx.merge(definition, state), x), rtol=1e-4, atol=1e-4)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got[1]))
