"""Shards of a batch on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batch_meshes import AUTO, EXPLICIT, MESHES, make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dyn.ops.sharding import find_batch_shards, map_batch


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


def largest(pair):
    """Returns the two largest numbers of each sample, and where the second array has a one for them."""
    values, index = jax.lax.top_k(pair["x"], 2)
    return values, jnp.take_along_axis(pair["y"], index, axis=1)


@pytest.mark.parametrize("name", MESHES)
def test_each_device_maps_its_part_of_a_batch(name, rng):
    pair = {name: jnp.asarray(rng.normal(size=(4, 9)), jnp.float32) for name in "xy"}
    expected = largest(pair)
    mesh = make_mesh(*MESHES[name])
    with jax.set_mesh(mesh):
        pair = jax.device_put(pair, NamedSharding(mesh, P("data")))
        run = jax.jit(lambda pair: map_batch(largest, pair))
        text, found = run.lower(pair).compile().as_text(), run(pair)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found[0].sharding.spec[0] in ("data", ("data",))
    assert not any(name in text for name in ("all-gather", "all-reduce", "collective-permute"))


def test_random_numbers_are_mapped_beside_a_batch(rng):
    """Without `jax.set_mesh`, where their type does not name a mesh."""
    mesh = make_mesh(*MESHES["auto"])

    def choose(numbers, y):
        return largest({"x": numbers, "y": y})

    y = jax.ShapeDtypeStruct((4, 9), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    run = jax.jit(lambda y: map_batch(choose, jax.random.uniform(jax.random.key(0), y.shape), y))
    assert "all-gather" not in run.lower(y).compile().as_text()


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("axis", [EXPLICIT, AUTO])
def test_a_batch_that_the_mesh_does_not_divide_is_mapped_by_all(axis, devices, rng):
    pair = {name: jnp.asarray(rng.normal(size=(3, 9)), jnp.float32) for name in "xy"}
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(axis,), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        whole = jax.device_put(pair, NamedSharding(mesh, P("data" if devices == 1 else None)))
        found = jax.jit(lambda pair: map_batch(largest, pair))(whole)
    jax.tree.map(np.testing.assert_array_equal, found, largest(pair))
