"""Every layer of the catalogue inside other people's models: flax's own ResNet, and NNX."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_cases import CONVOLUTIONS, LAYERS, filled, init_shapes, random_input, shapes_of, usual


class ResNetBlock(nn.Module):
    """The block of flax's own ImageNet example, which knows nothing of dynamic convolutions."""

    filters: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = nn.relu(self.norm()(y))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """Stem, one block and classifier, in the pattern of flax's ImageNet example."""

    conv: Callable[..., nn.Module] = nn.Conv
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = partial(self.conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(8, (3, 3), (2, 2), padding=[(1, 1), (1, 1)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = ResNetBlock(16, strides=(2, 2), conv=conv, norm=norm)(x)
        x = nn.Dense(5, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
        return jnp.asarray(x, self.dtype)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_trains_inside_flax_s_own_resnet(name):
    case = CONVOLUTIONS[name]
    x = random_input(4, 16, 16, 3).astype(jnp.bfloat16)
    net = ResNet(conv=case.make, dtype=jnp.bfloat16)
    variables = filled(net, x)
    kind = type(case.layer()).__name__
    convolutions = {"conv_init", f"{kind}_0", f"{kind}_1", "conv_proj"}
    params = variables["params"]
    assert convolutions < set(params) | set(params["ResNetBlock_0"])

    @jax.jit
    def train_step(variables):
        def loss(params):
            logits, state = net.apply(
                {**variables, "params": params}, x, mutable=["batch_stats", "intermediates"]
            )
            return jnp.mean(nn.log_softmax(logits.astype(jnp.float32))[:, 0]), state

        return jax.grad(loss, has_aux=True)(variables["params"])

    # flax's BatchNorm does not run in bfloat16 under strict promotion (see `init_shapes`).
    with jax.numpy_dtype_promotion("standard"):
        gradients, state = train_step(variables)
        logits = jax.eval_shape(partial(net.apply, train=False), variables, x)
    assert logits.dtype == jnp.bfloat16
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    # Each layer decided something; a pointwise kernel may have nothing to decide about.
    sown = state["intermediates"]
    assert convolutions <= set(sown) | set(sown["ResNetBlock_0"]) | {"conv_proj"}
    # Nothing but the collection told them that this is training.
    if case.statistics:
        after, before = (v["batch_stats"]["conv_init"] for v in (state, variables))
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
            assert not np.array_equal(new, old)


def linen_variables(model):
    """The variables of a layer that `ToNNX` made, as linen has them."""
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
def test_as_a_layer_of_nnx_it_gives_the_same_output_and_trains(name):
    layer, _, x, apply, *_ = usual(name)

    @nnx.jit  # only because that is quicker
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
