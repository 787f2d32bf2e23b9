"""The fused kernels for a mixture at each position compile for every generation of TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dyn.ops import dynamic_conv, platforms
from dyn.ops.geometry import resolve_geometry

pytest.importorskip("libtpu", reason="compiles for TPUs: install libtpu beside jax")
pytestmark = pytest.mark.tpu

GENERATIONS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
# Spatial shape, kernel size, strides, features, filters, kernels, samples, dtype.
CASES = {
    "first stage of a ResNet": ((56, 56), (3, 3), 1, 64, 64, 4, 128, jnp.bfloat16),
    "second stage": ((28, 28), (3, 3), 1, 128, 128, 4, 128, jnp.bfloat16),
    "first of the second stage": ((56, 56), (3, 3), 2, 64, 128, 4, 128, jnp.bfloat16),
    "projection": ((56, 56), (1, 1), 2, 64, 128, 4, 128, jnp.bfloat16),
    "half a picture": ((28, 28), (3, 3), 1, 64, 64, 4, 128, jnp.float32),
    "few samples and features": ((9, 7), (3, 3), 2, 3, 20, 3, 2, jnp.float32),
    "sequence": ((250,), (5,), 1, 16, 32, 2, 256, jnp.bfloat16),
    "16 kernels": ((14, 14), (3, 3), 1, 32, 32, 16, 128, jnp.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_kernels_compile(generation, name):
    topology = topologies.get_topology_desc(platform="tpu", topology_name=generation)
    mesh = Mesh(np.array(topology.devices[:1]), "x")
    spatial, size, strides, features, filters, num_kernels, batch, dtype = CASES[name]

    def describe(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    x = describe((batch, *spatial, features), dtype)
    w = describe((num_kernels, *size, features, filters), jnp.float32)
    out = resolve_geometry(spatial, size, strides).out
    mix = describe((batch, *out, num_kernels), jnp.float32)

    def loss(x, w, mix):
        y = dynamic_conv(x, w, mix, strides=strides, lowering="fused")
        return jnp.sum(y.astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh), platforms.plan_for_platform("tpu"):
        compiled = jax.jit(jax.grad(loss, range(3))).lower(x, w, mix).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
