"""CondConv against published numbers, and one routing for a block."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import (
    assert_learns,
    assert_published,
    filled,
    init_shapes,
    random_input,
    shapes_of,
    sines,
)

from dyn.layers.cond_conv import CondConv

# Parity with a torch port, by numbers published with the formulas: all arrays are sines.


def test_published_parity_vector():
    layer = CondConv(6, (3, 3), padding=1, num_kernels=4, param_dtype=jnp.float64)
    x = sines((2, 4, 5, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    params = {
        "kernel": sines((4, 6, 4, 3, 3), 0.7).transpose(0, 3, 4, 2, 1),
        "bias": sines((4, 6), 0.9),
        "routing": {"kernel": sines((4, 4), 0.1, 2.0).T, "bias": sines((4,), 0.6)},
    }
    sums = (63.2198154482, 102.3466730759)
    entries = (0.30967746, 0.46452478, 0.5366627, 0.59566604, -0.10221358)
    sown = assert_published(layer, {"params": params}, x, sums, entries)
    (weights,) = sown["attention"]["weights"]
    routing = (0.65636318, 0.69201629, 0.54833597, 0.51123503)
    np.testing.assert_allclose(weights["kernel"][0], routing, rtol=0, atol=6e-9)


def routing_by_numpy(params, context):
    logits = np.asarray(context) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    return 1 / (1 + np.exp(-logits))


# One routing for a block.


class InvertedResidual(nn.Module):
    """Expansion, depthwise and projection convolutions with one routing, as in the paper."""

    num_kernels: int = 3

    @nn.compact
    def __call__(self, x):
        context = x.mean((1, 2))
        conv = partial(
            CondConv,
            num_kernels=self.num_kernels,
            router=nn.Dense(self.num_kernels, name="router"),
            use_bias=False,
        )
        y = conv(8, (1, 1), name="expand")(x, context=context)
        y = conv(8, (3, 3), feature_group_count=8, name="depthwise")(nn.relu(y), context=context)
        return conv(x.shape[-1], (1, 1), name="project")(y, context=context) + x


def test_one_routing_serves_a_block():
    x = random_input(3, 5, 5, 4)
    block = InvertedResidual()
    variables = filled(block, x)
    assert shapes_of(variables["params"]) == {
        "router/kernel": (4, 3),
        "router/bias": (3,),
        "expand/kernel": (3, 1, 1, 4, 8),
        "depthwise/kernel": (3, 3, 3, 1, 8),
        "project/kernel": (3, 1, 1, 8, 4),
    }
    _, state = jax.jit(partial(block.apply, mutable=["intermediates"]))(variables, x)
    want = routing_by_numpy(variables["params"]["router"], np.asarray(x).mean((1, 2)))
    for layer in ("expand", "depthwise", "project"):
        (sown,) = state["intermediates"][layer]["attention"]["weights"]
        np.testing.assert_allclose(sown["kernel"], want, rtol=1e-5)

    def loss(params):
        return jnp.sum(block.apply({"params": params}, x) ** 2)

    assert_learns(jax.jit(jax.grad(loss))(variables["params"]))


def test_a_single_expert_is_routed_too():
    shapes = shapes_of(init_shapes(CondConv(6, (1, 1), num_kernels=1), jnp.ones((2, 5, 5, 4))))
    assert shapes["params/routing/kernel"] == (4, 1)


def test_a_router_for_another_number_of_experts_is_refused():
    layer = CondConv(6, (3, 3), num_kernels=4, router=nn.Dense(3))
    with pytest.raises(ValueError, match=r"router .*\(2, 4\)"):
        init_shapes(layer, jnp.ones((2, 5, 5, 4)))


# Parameters.


def test_every_expert_starts_like_a_single_kernel():
    """Normal with variance 2 / (k O), biases zero; the routing uniform with variance 2 / (I + K)."""
    params = jax.jit(CondConv(96, (3, 3), num_kernels=3).init)(
        jax.random.key(0), jnp.ones((2, 3, 3, 64))
    )["params"]
    for expert in params["kernel"]:
        assert np.std(expert) == pytest.approx(np.sqrt(2 / (9 * 96)), rel=0.05)
    np.testing.assert_array_equal(params["bias"], np.zeros((3, 96)))
    bound = np.sqrt(6 / (64 + 3))
    assert 0.9 * bound < np.abs(params["routing"]["kernel"]).max() <= bound
    np.testing.assert_array_equal(params["routing"]["bias"], np.zeros(3))
