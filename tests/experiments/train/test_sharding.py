"""Shardings of parameters and batches over the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from experiments.core.errors import UserError
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


def test_a_run_takes_the_mesh_that_is_set():
    assert find_mesh().axis_types == (AxisType.Auto,)
    one = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    with jax.set_mesh(one):
        assert find_mesh() == one
    with jax.set_mesh(jax.make_mesh((2, 2), ("rows", "model"))):
        with pytest.raises(UserError, match="rows, model"):
            find_mesh()


def test_parameters_are_split_over_the_data_axis_alone():
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    shape = jax.ShapeDtypeStruct((2, 4099), jnp.float32)
    assert with_shards(shape, mesh).sharding.spec == P("data")
