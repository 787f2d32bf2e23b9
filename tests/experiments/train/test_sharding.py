"""Shardings of parameters and batches over the devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from experiments.train.sharding import find_mesh, shard_batch, with_shards

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
        find_mesh(),
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
    batch = shard_batch({"inputs": np.zeros((8, 3)), "label": np.arange(8)}, find_mesh())
    assert {len(shard.data) for shard in batch["label"].addressable_shards} == {8 // DEVICES}
