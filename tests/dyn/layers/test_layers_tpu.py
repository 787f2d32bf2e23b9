"""Layers compile for TPUs, and those with a kernel per position or per frequency store no patches there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dyn import layers
from dyn.ops import platforms

pytest.importorskip("libtpu", reason="compiles for TPUs: install libtpu beside jax")
pytestmark = pytest.mark.tpu

# Layer and the shape of its inputs.
POSITIONS = {
    "Involution": (layers.Involution(128, (7, 7), padding=3), (16, 28, 28, 128)),
    "DecoupledDynamicFilter": (layers.DecoupledDynamicFilter(128, (3, 3)), (8, 14, 14, 128)),
    "SequenceDynamicConv": (
        layers.SequenceDynamicConv(256, (31,), padding="CAUSAL"),
        (4, 256, 256),
    ),
    "LightweightConv": (layers.LightweightConv(256, (7,)), (4, 256, 256)),
    "FrequencyDynamicConv": (layers.FrequencyDynamicConv(32, (3, 3)), (4, 32, 16, 32)),
}

PICTURES = (8, 14, 14, 64)
OTHERS = {
    "FDConv": (layers.FDConv(64, (3, 3)), PICTURES),
    "WarehouseConv": (
        layers.WarehouseConv(64, (3, 3), in_ratio=0.5, out_ratio=0.5, basis_ratio=0.5),
        PICTURES,
    ),
    "WarehouseDense": (layers.WarehouseDense(64, in_ratio=0.5), (8, 64)),
    "DynamicDense": (layers.DynamicDense(64, token_axes=1), (8, 16, 64)),
    "DeformableConv": (layers.DeformableConv(64, (3, 3)), PICTURES),
    "DeformableAggregation": (layers.DeformableAggregation((3, 3)), PICTURES),
    "SelectiveKernel": (layers.SelectiveKernel(64, (3, 3)), PICTURES),
    "EfficientChannelAttention": (layers.EfficientChannelAttention(), PICTURES),
    "CoordinateAttention": (layers.CoordinateAttention(), PICTURES),
    "CBAM": (layers.CBAM(), PICTURES),
    "DynamicReLU": (layers.DynamicReLU(), PICTURES),
}


def compile_gradient(layer, shape):
    """Compiles the gradient of a layer on one chip."""
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    mesh = Mesh(np.array([device]), "data")
    x, key = jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.random.key(0)

    def gradient(variables, x):
        def loss(variables, x):
            y, _ = layer.apply(variables, x, mutable=["batch_stats"])
            return jnp.sum(y.astype(jnp.float32) ** 2)

        return jax.grad(loss, (0, 1))(variables, x)

    with (
        platforms.plan_for_platform("tpu"),
        jax.set_mesh(mesh),
    ):  # kernels ask the mesh for the chip
        variables = jax.eval_shape(layer.init, key, x)
        arrays = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(
                a.shape, a.dtype, sharding=NamedSharding(mesh, PartitionSpec())
            ),
            (variables, x),
        )
        return jax.jit(gradient).lower(*arrays).compile()


@pytest.mark.parametrize("name", POSITIONS)
def test_patches_are_not_stored(name):
    layer, shape = POSITIONS[name]
    compiled = compile_gradient(layer.copy(dtype=jnp.bfloat16), shape)
    # Not even with the lanes that groups of channels would leave empty.
    patches = 2 * math.prod(shape) * math.prod(layer.kernel_size)
    assert compiled.memory_analysis().temp_size_in_bytes < patches


@pytest.mark.parametrize("name", OTHERS)
def test_a_gradient_compiles(name):
    compile_gradient(*OTHERS[name])
