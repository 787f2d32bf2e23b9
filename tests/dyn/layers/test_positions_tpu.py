"""Layers with a kernel per position, or per frequency, compile for TPUs and store no patches there."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from dyn import layers
from dyn.ops import planner

pytest.importorskip("libtpu", reason="compiles for TPUs: install libtpu beside jax")
pytestmark = pytest.mark.tpu

# Layer and the shape of its inputs.
CASES = {
    "Involution": (layers.Involution(128, (7, 7), padding=3), (16, 28, 28, 128)),
    "DecoupledDynamicFilter": (layers.DecoupledDynamicFilter(128, (3, 3)), (8, 14, 14, 128)),
    "SequenceDynamicConv": (
        layers.SequenceDynamicConv(256, (31,), padding="CAUSAL"),
        (4, 256, 256),
    ),
    "LightweightConv": (layers.LightweightConv(256, (7,)), (4, 256, 256)),
    "FrequencyDynamicConv": (layers.FrequencyDynamicConv(32, (3, 3)), (4, 32, 16, 32)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_compiles(name):
    layer, shape = CASES[name]
    layer = layer.copy(dtype=jnp.bfloat16)
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def gradient(variables, x):
        def loss(variables, x):
            return jnp.sum(layer.apply(variables, x).astype(jnp.float32) ** 2)

        return jax.grad(loss, (0, 1))(variables, x)

    with planner.plan_for_platform("tpu"):
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        arrays = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=SingleDeviceSharding(device)),
            (variables, x),
        )
        compiled = jax.jit(gradient).lower(*arrays).compile()
    # Not even with the lanes that groups of channels would leave empty.
    patches = 2 * math.prod(shape) * math.prod(layer.kernel_size)
    assert compiled.memory_analysis().temp_size_in_bytes < patches
