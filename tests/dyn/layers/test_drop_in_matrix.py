"""Every layer inside flax's own ResNet, and as an NNX layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_resnet import assert_trains_inside_flax_resnet
from layer_cases import CONVOLUTIONS, LAYERS, compiled_case, init_shapes, shapes_of

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_trains_inside_flax_resnet(name):
    assert_trains_inside_flax_resnet(CONVOLUTIONS[name])


def linen_variables(model):
    """Returns the variables of a layer that `ToNNX` made, as Linen has them."""
    collections = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
    variables = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[0].startswith("to_nnx"):
            continue  # the streams of random numbers
        at = variables.setdefault(collections.get(type(variable), "attention"), {})
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = variable.get_value()
    return variables


@pytest.mark.parametrize("name", LAYERS)
def test_as_an_nnx_layer_it_computes_the_same_and_trains(name):
    layer, _, x, apply, *_ = compiled_case(name)

    @nnx.jit  # for speed
    def make(x):
        return nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(x)

    model = make(x)
    variables = linen_variables(model)
    assert shapes_of(variables) == shapes_of(init_shapes(layer, x))
    # One is compiled and the other is not.
    np.testing.assert_allclose(model(x), apply(variables, x), rtol=1e-4, atol=1e-5)

    @nnx.jit
    def train_step(model):
        def loss(model):
            return jnp.mean((model(x, mutable=["batch_stats"]) - 1.0) ** 2)

        value, gradient = nnx.value_and_grad(loss)(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient))
        return value

    first, second = float(train_step(model)), float(train_step(model))
    assert second < first
    after = linen_variables(model)
    assert set(after) == set(variables)
    if LAYERS[name].statistics:
        pairs = zip(*(jax.tree.leaves(v["batch_stats"]) for v in (variables, after)), strict=True)
        assert all(np.abs(new - old).max() > 0 for old, new in pairs)
