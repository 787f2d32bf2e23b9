"""Operations on boxes compile for TPUs, and ROIAlign and its gradient gather and scatter nothing there."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from dyn.ops import choose_levels, multilevel_roi_align, non_max_suppression, platforms

pytest.importorskip("libtpu", reason="compiles for TPUs: install libtpu beside jax")
pytestmark = pytest.mark.tpu

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def compile_for_tpu(function, *shapes):
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))
        for shape, dtype in shapes
    ]
    with platforms.plan_for_platform("tpu"):
        return jax.jit(function).lower(*arrays).compile()


def test_roi_align_is_made_of_products():
    def loss(boxes, *levels):
        chosen = choose_levels(boxes, 4)
        y = multilevel_roi_align(levels, boxes, 7, scales=SCALES, levels=chosen)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    levels = [((1, int(256 * s), int(384 * s), 128), jnp.bfloat16) for s in SCALES]
    gradient = jax.grad(loss, argnums=(1, 2, 3, 4))
    compiled = compile_for_tpu(gradient, ((1, 64, 4), jnp.float32), *levels)
    text = compiled.as_text()
    assert not re.search(r"\b(gather|scatter)\(", text)
    assert compiled.memory_analysis().temp_size_in_bytes < 2**27


def test_suppression_compiles():
    def suppress(boxes, scores):
        return non_max_suppression(boxes, scores, 0.7, 100)

    shapes = ((2, 256, 4), jnp.float32), ((2, 256), jnp.float32)
    assert compile_for_tpu(suppress, *shapes).memory_analysis().temp_size_in_bytes < 2**23
