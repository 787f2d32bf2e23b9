"""Layers run where JAX may promote neither ranks nor dtypes, as nn.Conv does."""

import jax
import jax.numpy as jnp
import pytest
from layer_cases import LAYERS, trace_strictly

from dyn.layers import Conv


@pytest.mark.parametrize("layer", [Conv(6, (3, 3)), LAYERS["ODConv"].layer()])
def test_nothing_is_promoted(layer):
    trace_strictly(layer, jax.ShapeDtypeStruct((4, 6, 5, 4), jnp.float32))
