"""Shardings of parameters and batches over the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dyn.diagnostics import count_parameters
from experiments.configs import odconv
from experiments.runs.checkpoints import with_sharding
from experiments.tasks import make_task
from experiments.train.memory import count_bytes_on_one_device
from experiments.train.optimizer import make_optimizer
from experiments.train.sharding import make_mesh, shard_batch, with_shards

DEVICES = 4


def test_an_array_is_split_along_its_longest_axis_that_the_devices_divide():
    shapes = {
        "kernel": (8, 3, 3, 64, 256),
        "tie": (3, 128, 128),
        "odd longest": (2, 64, 1001),
        "indivisible": (3, 5, 1001),
        "small": (512,),
        "scalar": (),
    }
    placed = with_shards(
        {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()},
        make_mesh(),
    )
    assert {name: leaf.sharding.spec for name, leaf in placed.items()} == {
        "kernel": P(None, None, None, None, "data"),
        "tie": P(None, "data"),
        "odd longest": P(None, "data"),
        "indivisible": P(),
        "small": P(),
        "scalar": P(),
    }
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in placed.items()} == {
        name: (shape, jnp.bfloat16) for name, shape in shapes.items()
    }


def test_a_batch_is_split_by_example():
    batch = shard_batch({"inputs": np.zeros((8, 3)), "label": np.arange(8)}, make_mesh())
    assert {len(shard.data) for shard in batch["label"].addressable_shards} == {8 // DEVICES}


def test_a_device_holds_its_share_of_a_resnet50_with_eight_kernels():
    """Shapes alone: nothing is allocated or compiled."""
    config = odconv.get_config("tiny_imagenet")
    config.model.depth, config.conv.num_kernels = 50, 8
    model = make_task(config).make_model(num_classes=1000, spatial_axes=2)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    with jax.numpy_dtype_promotion("standard"):
        moments = jax.eval_shape(make_optimizer(config, lambda step: 1e-3).init, params)
    state, number = (params, moments), count_parameters(params)
    assert number > 170e6
    replicated = with_sharding(state, NamedSharding(make_mesh(), P()))
    everywhere = count_bytes_on_one_device(replicated)
    assert everywhere == pytest.approx(3 * 4 * number, rel=1e-6)
    sharded = count_bytes_on_one_device(with_shards(state, make_mesh()))
    # Biases and the scales of norms stay whole.
    assert 1 / DEVICES < sharded / everywhere < 1.01 / DEVICES
