"""Dropout, which draws the same on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from dyn.models.dropout import Dropout

pytestmark = pytest.mark.matrix


def drop(layer, x, train=True):
    net = nn.Sequential([layer(0.25, broadcast_dims=(1,), deterministic=not train)])
    apply = jax.jit(lambda x: net.apply({}, x, rngs={"dropout": jax.random.key(3)}))
    return apply(x)


def test_explicit_axes_change_nothing(rng):
    x = jnp.asarray(rng.normal(size=(8, 3, 5)), jnp.float32)
    batch = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
    for dtype in (jnp.float32, jnp.bfloat16):
        expected = drop(nn.Dropout, x.astype(dtype))
        np.testing.assert_array_equal(drop(Dropout, x.astype(dtype)), expected)
        sharded = drop(Dropout, jax.device_put(x.astype(dtype), batch))
        assert jax.typeof(sharded).sharding.spec == PartitionSpec("data", None, None)
        assert sharded.dtype == dtype
        tolerance = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(*map(np.float32, (sharded, expected)), rtol=tolerance)
    np.testing.assert_array_equal(drop(Dropout, jax.device_put(x, batch), train=False), x)
