"""On a TPU the gradient of max pooling scatters."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from dyn.ops import max_pool, platforms

pytest.importorskip("libtpu", reason="compiles for TPUs: install libtpu beside jax")
pytestmark = pytest.mark.tpu


def test_the_gradient_scatters():
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    sharding = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((8, 56, 56, 64), jnp.bfloat16, sharding=sharding)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(max_pool(x, (3, 3), 2, 1))))
    with platforms.plan_for_platform("tpu"):
        text = jax.jit(gradient).lower(x).compile().as_text()
    assert "select-and-scatter(" in text and " pad(" not in text
