"""Dense layers of the catalogue: matrices by definition, tokens, contexts, costs and warm starts."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import DENSE, filled, init_shapes, random_input

from dyn.diagnostics import count_macs, layer_costs
from dyn.interop import candidate_kernels, warm_start
from dyn.layers import CondDense, DCDDense, DynamicDense, WarehouseDense


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def mix_by_definition(params, context, temperature):
    """Returns the weights of K matrices for one context."""
    if "routing" in params:
        routing = params["routing"]
        return 1 / (1 + np.exp(-(context @ routing["kernel"] + routing["bias"])))
    attention = params["attention"]
    z = np.maximum(context @ attention["squeeze"]["kernel"], 0)
    return softmax((z @ attention["kernel"]["kernel"] + attention["kernel"]["bias"]) / temperature)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("make", [DynamicDense, CondDense])
def test_mixtures_of_matrices_by_definition(make, use_bias):
    """Tokens of a sample share a matrix, which depends on their mean."""
    layer = make(5, use_bias, num_kernels=3, param_dtype=jnp.float64, token_axes=1)
    with jax.enable_x64(True):
        x = random_input(2, 3, 4, 7, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        temperature = 1.0
        if make is DynamicDense:
            temperature = variables["attention"]["attention"]["temperature"]
        params = variables["params"]
        y = jax.jit(layer.apply)(variables, x)
        assert y.dtype == np.float64
    for sample, got in zip(np.asarray(x).reshape(6, 4, 7), y.reshape(6, 4, 5), strict=True):
        mix = mix_by_definition(params, sample.mean(0), temperature)
        matrix = sum(a * w[0] for a, w in zip(mix, params["kernel"], strict=True))
        bias = mix @ params["bias"] if use_bias else 0
        np.testing.assert_allclose(got, sample @ matrix + bias, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DENSE)
def test_without_token_axes_every_vector_has_its_own_matrix(name):
    layer = DENSE[name].layer()
    x = random_input(2, 3, 9)
    variables = filled(layer, x)
    want = layer.apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x[:, 1]), want[:, 1], rtol=1e-4, atol=1e-5)
    # Equal tokens have the mean of each, and so its matrix.
    tokens = jnp.broadcast_to(x[:, :1], x.shape)
    together = layer.copy(token_axes=1).apply(variables, tokens)
    np.testing.assert_allclose(together[:, 2], want[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DENSE)
def test_tokens_share_the_context_of_their_sample(name):
    layer = DENSE[name].layer(token_axes=1)
    x, context = random_input(2, 3, 9), random_input(2, 4, seed=3)
    variables = filled(layer, x, context)
    y = layer.apply(variables, x, context)
    assert y.shape == (2, 3, 6)
    alone = layer.copy(token_axes=0).apply(variables, x[:, 1], context)
    np.testing.assert_allclose(y[:, 1], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="token_axes=1"):
        init_shapes(layer, x, jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="token_axes=3"):
        init_shapes(layer.copy(token_axes=3), x)


def test_costs_are_one_product_and_the_mixing_of_matrices():
    layer = DynamicDense(10, num_kernels=4, token_axes=1)
    x = jax.ShapeDtypeStruct((2, 50, 64), jnp.float32)
    variables = init_shapes(layer, x)
    attention = 2 * (64 * 16 + 16 * 4)
    mixing = 2 * 4 * 64 * 10 + 2 * 4 * 10  # of matrices and of biases
    assert count_macs(layer.apply, variables, x) == 2 * 50 * 64 * 10 + mixing + attention

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layer.clone(name="head", parent=self)(x)

    costs = layer_costs(Net(), init_shapes(Net(), x), x)
    assert costs["head/attention"].macs == attention
    assert costs["head"].parameters == 4 * 65 * 10 + 64 * 16 + 16 * 4 + 4


@pytest.mark.parametrize(
    "layer",
    [
        DynamicDense(5, num_kernels=3),
        CondDense(5, num_kernels=3),
        WarehouseDense(5, in_ratio=1 / 2),
        DCDDense(5, latent=3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_starts_as_the_static_layer(layer):
    x, static = random_input(4, 6), nn.Dense(5)
    trained = filled(static, x)
    fresh = jax.jit(layer.init)(jax.random.key(1), x)
    variables = warm_start(fresh, trained, noise=0.3, key=jax.random.key(2))
    y = jax.jit(layer.apply)(variables, x)
    np.testing.assert_allclose(y, static.apply(trained, x), rtol=1e-4, atol=1e-4)
    frozen = candidate_kernels(variables["params"])
    assert frozen.get("kernel", False) == isinstance(layer, DynamicDense | CondDense)


def test_a_context_need_not_be_squeezed():
    layer, x = DynamicDense(4, num_kernels=3, reduction=None), random_input(2, 6)
    variables = filled(layer, x)
    params = variables["params"]
    attention = params["attention"]["mixture"]
    logits = x @ attention["kernel"] + attention["bias"]
    temperature = variables["attention"]["attention"]["temperature"]
    mix = np.stack([softmax(row / temperature) for row in np.asarray(logits)])
    kernels = np.einsum("bk,ktio->btio", mix, params["kernel"])[:, 0]
    want = np.einsum("bi,bio->bo", x, kernels) + mix @ params["bias"]
    np.testing.assert_allclose(layer.apply(variables, x), want, rtol=1e-4, atol=1e-5)


def test_experts_of_several_layers_share_a_router():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            router = nn.Dense(3, name="router")
            dense = partial(CondDense, 7, num_kernels=3, router=router)
            return dense(name="second")(dense(name="first")(x), x)

    params = init_shapes(Two(), jnp.ones((2, 7)))["params"]
    assert set(params) == {"router", "first", "second"} and "routing" not in params["first"]
