"""The kernels for samples and their gradients compile for every generation of TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dyn.ops.assemble_tpu import assemble_kernels
from dyn.ops.fused_samples_tpu import convolve_with_sample_kernels
from dyn.ops.geometry import resolve_geometry

pytest.importorskip("libtpu", reason="compiles for TPUs: install libtpu beside jax")
pytestmark = pytest.mark.tpu

GENERATIONS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
# Spatial shape, kernel size, strides, features, filters.
CASES = {
    "first stage of a ResNet": ((56, 56), (3, 3), 1, 64, 64),
    "first of the third stage": ((28, 28), (3, 3), 2, 128, 256),
    "strided, few features": ((8, 8), (3, 3), 2, 16, 32),
    "last stage": ((7, 7), (3, 3), 1, 512, 512),
    "projection": ((28, 28), (1, 1), 2, 128, 256),
    "sequence": ((500,), (5,), 1, 64, 192),
    "features between tiles of lanes": ((7, 7), (3, 3), 1, 192, 320),
}
# Taps, blocks along outputs and inputs, cells, and a cell's features.
ASSEMBLIES = {
    "taps": (9, 1, 1, 9, 512, 512),
    "a stage's": (9, 1, 2, 63, 256, 512),
    "narrow": (9, 1, 1, 9, 64, 64),
}


def compile_for(generation, function, *arrays):
    """Compiles a function of arrays `(shape, dtype)` for one chip, and returns the number of its kernels."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=generation)
    mesh = Mesh(np.array(topology.devices[:1]), "x")
    sharding = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(*array, sharding=sharding) for array in arrays]
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(*arguments).compile().as_text()
    return text.count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_convolution_and_its_gradients_compile(generation, name, dtype):
    spatial, size, strides, features, filters = CASES[name]
    geometry = resolve_geometry(spatial, size, strides)

    def compute(x, w, dy):
        y, back = jax.vjp(lambda x, w: convolve_with_sample_kernels(x, w, geometry, None), x, w)
        return y, back(dy)

    shapes = ((8, *spatial, features), (8, *size, features, filters), (8, *geometry.out, filters))
    assert compile_for(generation, compute, *((shape, dtype) for shape in shapes)) == 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ASSEMBLIES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_assembly_and_its_gradients_compile(generation, name, dtype):
    taps, p, q, number, i, o = ASSEMBLIES[name]

    def compute(mix, cells, dw):
        w, back = jax.vjp(lambda mix, cells: assemble_kernels(mix, cells, dtype), mix, cells)
        return w, back(dw)

    arrays = (
        ((128, taps, p, q, number), jnp.float32),
        ((number, i, o), jnp.float32),
        ((128, taps, q * i, p * o), dtype),
    )
    assert compile_for(generation, compute, *arrays) == 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("features", [64, 512])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_assembly_with_scales_compiles(generation, features, dtype):
    batch, taps, number, terms = 128, 9, 64, 5

    def compute(mix, cells, u, v, dw):
        def assemble(mix, cells, u, v):
            return assemble_kernels(mix, cells, dtype, (u, v))

        w, back = jax.vjp(assemble, mix, cells, u, v)
        return w, back(dw)

    shapes = (
        (batch, taps, 1, 1, number),
        (number, taps, features, features),
        (batch, features, terms),
        (terms, taps, features),
    )
    arrays = [(shape, jnp.float32) for shape in shapes]
    d_kernels = ((batch, taps, features, features), dtype)
    assert compile_for(generation, compute, *arrays, d_kernels) == 2
