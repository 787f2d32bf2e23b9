"""Shards of a batch on meshes."""

import jax
import jax.numpy as jnp
import pytest
from batch_meshes import AUTO, MESHES, make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dyn.ops.sharding import find_batch_shards


def find_in_jit(batch):
    """Returns what is known of the batch's shards while a function of it is traced."""
    found = []
    jax.jit(lambda x: found.append(find_batch_shards(x)))(batch)
    return found[0]


@pytest.mark.parametrize("name", MESHES)
def test_the_shards_of_a_batch_are_found(name):
    mesh = make_mesh(*MESHES[name])
    with jax.set_mesh(mesh):
        shards = find_in_jit(jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, P("data"))))
        assert shards[1:] == (("data",), mesh.shape["data"])


def test_shards_are_unknown_without_a_mesh_and_on_several_automatic_axes():
    assert find_in_jit(jnp.ones((4, 3))) is None
    mesh = make_mesh((2, 2), (AUTO, AUTO))
    with jax.set_mesh(mesh):
        assert find_in_jit(jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, P("data")))) is None
        # Inside of a `shard_map`, the array is a shard already.
        inside = []
        jax.shard_map(
            lambda x: inside.append(find_batch_shards(x)), in_specs=P("data"), out_specs=None
        )(jnp.ones((4, 3)))
        assert inside[0].number == 1
