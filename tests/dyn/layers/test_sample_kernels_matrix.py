"""Layers with a kernel per sample, computed by the kernels for TPUs in Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from dyn.layers import FDConv, GatedConv, RotatedConv, WarehouseConv
from dyn.layers import convolution as convolutions
from dyn.ops import platforms

pytestmark = pytest.mark.matrix

LAYERS = {
    "WarehouseConv": (WarehouseConv, dict(strides=2)),
    "WarehouseConv, small cells": (WarehouseConv, dict(in_ratio=0.5, cell_ratio=2)),
    "WarehouseConv, whole cells": (
        WarehouseConv,
        dict(in_ratio=0.5, cell_ratio=2, spatial_partition=False),
    ),
    "WarehouseConv, mask": (
        WarehouseConv,
        dict(mask=jnp.tri(16)[None, None] * jnp.ones((3, 3, 1, 1))),
    ),
    "FDConv": (FDConv, dict(num_kernels=4, min_features=0)),
    "GatedConv, slices": (GatedConv, dict(granularity="slice")),
    "RotatedConv": (RotatedConv, dict(num_kernels=2, rotations=3)),
}


def compute_with_gradients(layer, variables, x):
    """Returns a layer's output and its gradients for all parameters and the inputs."""

    def loss(params, x):
        y = layer.apply({**variables, "params": params}, x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)


@pytest.mark.parametrize("lowering", ["auto", "fused"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_same_on_a_tpu(name, lowering, monkeypatch):
    make, fields = LAYERS[name]
    # A large kernel and a small picture, so that the kernel is assembled.
    features, spatial = (32, (3, 2)) if "small cells" in name else (16, (3, 2))
    x = jax.random.normal(jax.random.key(0), (8, *spatial, features))
    layer = make(16, (3, 3), precision="highest", **fields)
    variables = layer.init(jax.random.key(1), x)
    # Away from the start, where attention is uniform.
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        a + 0.1 * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys, strict=True)
    ]
    variables = jax.tree.unflatten(tree, leaves)
    want = compute_with_gradients(layer.clone(lowering="patches"), variables, x)

    def map_at_once(function, arrays, _):
        return function(*arrays)

    # The interpreter cannot be inside of `jax.checkpoint`.
    monkeypatch.setattr(convolutions, "map_with_kernels", map_at_once)
    with platforms.plan_for_platform("tpu"), pltpu.force_tpu_interpret_mode():
        got = compute_with_gradients(layer.clone(lowering=lowering), variables, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-5 * np.abs(b).max() + 1e-7)


def test_kernels_are_made_in_parts_of_the_batch_for_a_tpu(monkeypatch):
    """In the program, not in its numbers: the interpreter cannot be inside of a loop."""
    monkeypatch.setattr("dyn.ops.lowerings.KERNEL_BYTES", 4 * 16 * 16 * 9 * 4)
    layer, x = WarehouseConv(16, (3, 3)), jnp.ones((16, 4, 4, 16))
    variables = layer.init(jax.random.key(0), x)
    with platforms.plan_for_platform("tpu"):
        text = str(jax.make_jaxpr(layer.apply)(variables, x))
    assert "sample_conv" in text and "f32[4,3,3,16,16]" in text
    assert "f32[16,3,3,16,16]" not in text
