"""The fused kernel and its gradients compile for every generation of TPUs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dyn.ops import dynamic_conv, platforms

pytest.importorskip("libtpu", reason="compiles for TPUs: install libtpu beside jax")
pytestmark = pytest.mark.tpu

GENERATIONS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
# Spatial shape, kernel size, strides, features, filters, kernels.
CASES = {
    "first stage of a ResNet": ((56, 56), (3, 3), 1, 64, 64, 4),
    "first of the third stage": ((28, 28), (3, 3), 2, 128, 256, 4),
    "strided, few features": ((8, 8), (3, 3), 2, 16, 32, 4),
    "last stage": ((7, 7), (3, 3), 1, 512, 512, 4),
    "one kernel with taps": ((7, 7), (3, 3), 1, 512, 512, 1),
    "projection": ((28, 28), (1, 1), 2, 128, 256, 4),
    "sequence": ((500,), (5,), 1, 64, 192, 2),
    "features between tiles of lanes": ((7, 7), (3, 3), 1, 192, 320, 2),
    "16 kernels": ((14, 14), (3, 3), 1, 128, 128, 16),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_kernel_and_its_gradients_compile(generation, name, dtype):
    topology = topologies.get_topology_desc(platform="tpu", topology_name=generation)
    mesh = Mesh(np.array(topology.devices[:1]), "x")
    spatial, size, strides, features, filters, num_kernels = CASES[name]

    def describe(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    x = describe((8, *spatial, features), dtype)
    w = describe((num_kernels, *size, features, filters), jnp.float32)
    mix = describe((8, num_kernels), jnp.float32)
    taps = describe((8, *size), jnp.float32)
    channels, filters = describe((8, features), jnp.float32), describe((8, filters), jnp.float32)

    def loss(x, w, mix, taps, channels, filters):
        weights = dict(taps=taps, channels=channels, filters=filters)
        y = dynamic_conv(x, w, mix, **weights, strides=strides, lowering="fused")
        return jnp.sum(y.astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh), platforms.plan_for_platform("tpu"):
        arguments = (x, w, mix, taps, channels, filters)
        compiled = jax.jit(jax.grad(loss, range(6))).lower(*arguments).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3


def test_vmap_compiles():
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = Mesh(np.array(topology.devices[:1]), "x")

    def describe(*shape):
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def convolve(x, w, mix):
        return jax.vmap(lambda x, mix: dynamic_conv(x, w, mix, lowering="fused"))(x, mix)

    with jax.set_mesh(mesh), platforms.plan_for_platform("tpu"):
        jax.jit(convolve).lower(
            describe(2, 4, 8, 8, 128), describe(2, 3, 3, 128, 128), describe(2, 4, 2)
        ).compile()


@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1"])
def test_a_slice_gathers_nothing(topology):
    """Each chip runs the kernels on its samples; the gradients of the candidates are one message."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices), "data", axis_types=(AxisType.Auto,))

    def describe(shape, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def loss(x, w, mix):
        return jnp.sum(dynamic_conv(x, w, mix) ** 2)

    with jax.set_mesh(mesh), platforms.plan_for_platform("tpu"):
        compiled = jax.jit(jax.grad(loss, range(3))).lower(
            describe((8, 14, 14, 128), "data"),
            describe((2, 3, 3, 128, 128)),
            describe((8, 2), "data"),
        )
    text = compiled.compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert len(re.findall(r"= \S+ all-reduce(-start)?\(", text)) == 1
    assert not re.search(r"all-(gather|to-all)|collective-permute", text)
