"""Any geometry of any layer is that of the definition or refused, for a few examples; empty batches."""

import jax
import jax.numpy as jnp
import pytest
from any_geometry import QUICK
from any_layer import NOTHING, applications, check_layer
from hypothesis import example, given
from layer_cases import CONVOLUTIONS, LAYERS, filled, random_input

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_any_geometry(name):
    @QUICK(max_examples=3)
    @example(NOTHING)
    @given(applications())
    def examples(case):
        check_layer(name, case)

    examples()


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch(name):
    layer, shape = LAYERS[name].layer(), LAYERS[name].shape
    x = random_input(*shape)
    variables = filled(layer, x)
    y = layer.apply(variables, jnp.zeros((0, *shape[1:])))
    assert y.shape == (0, *jax.eval_shape(layer.apply, variables, x).shape[1:])
