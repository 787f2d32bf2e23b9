"""The fused kernel gradient compiles for every generation of TPUs, within a core's memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding
from kernel_gradient_cases import Case, make_geometry

from dyn.ops.fused_tpu_gradient import compute_kernel_gradients

pytest.importorskip("libtpu", reason="compiles for TPUs: install libtpu beside jax")
pytestmark = pytest.mark.tpu

GENERATIONS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
CASES = {
    "first stage of a ResNet": Case((56, 56), (3, 3), features=(64, 64), num_kernels=4),
    "last stage, strides 2": Case(
        (14, 14), (3, 3), strides=2, features=(256, 512), num_kernels=4, batch=8
    ),
    "projection, strides 2": Case((28, 28), (1, 1), strides=2, features=(128, 256), batch=4),
    "last stage, weighted features": Case(
        (7, 7), (3, 3), features=(512, 512), num_kernels=4, batch=8, scaled=True
    ),
    "16 kernels": Case((7, 7), (3, 3), features=(512, 512), num_kernels=16, batch=4),
    "1-D": Case((500,), (5,), features=(64, 192), num_kernels=1, batch=8),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_kernel_gradients_compile(generation, name, dtype):
    topology = topologies.get_topology_desc(platform="tpu", topology_name=generation)
    device = topology.devices[0]
    case = CASES[name]
    geometry = make_geometry(case)

    def describe(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    features, filters = case.features
    arguments = (
        describe((case.batch, *case.spatial, features), dtype),
        describe((case.batch, *geometry.out, filters), dtype),
        describe((case.num_kernels, *case.size, features, filters), jnp.float32),
        describe((case.batch, geometry.taps, case.num_kernels), jnp.float32),
        tuple(describe((case.batch, n), jnp.float32) for n in case.features)
        if case.scaled
        else None,
    )
    with jax.set_mesh(Mesh(np.array([device]), "x")):  # it says for which generation to lower
        compute = jax.jit(compute_kernel_gradients, static_argnums=5)
        assert "tpu_custom_call" in compute.lower(*arguments, geometry).compile().as_text()
