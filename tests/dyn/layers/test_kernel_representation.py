"""KernelRepresentation: its formula and its gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input, shapes_of

from dyn.layers.kernel_representation import KernelRepresentation, append_state

D = 8


class Chain(nn.Module):
    """Returns the states for the inputs of several layers, one after another."""

    hidden: int | None = None
    spatial_axes: int = 2
    param_dtype: type = jnp.float32

    @nn.compact
    def __call__(self, *inputs):
        representation = KernelRepresentation(
            D,
            hidden=self.hidden,
            spatial_axes=self.spatial_axes,
            param_dtype=self.param_dtype,
            name="representation",
        )
        states, h = [], None
        for number, x in enumerate(inputs):
            h = representation(x, h, layer=f"conv{number}")
            states.append(h)
        return states


def test_follows_the_formula():
    chain = Chain(hidden=5, param_dtype=jnp.float64)
    # flax's LayerNorm needs promotion in float64.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        inputs = [
            random_input(2, 3, *shape, seed=i, dtype=np.float64)
            for i, shape in enumerate([(4, 5, 3), (2, 2, 6), (1, 2, 4)])
        ]
        variables = filled(chain, *inputs, dtype=np.float64)
        states = jax.jit(chain.apply)(variables, *inputs)
    params = variables["params"]["representation"]
    assert shapes_of(params) == {
        "initial": (D,),
        "norm/scale": (D,),
        "norm/bias": (D,),
        "hidden/kernel": (2 * D, 5),
        "hidden/bias": (5,),
        "update/kernel": (5, D),
        "update/bias": (D,),
        "contribution_conv0/kernel": (3, D),
        "contribution_conv1/kernel": (6, D),
        "contribution_conv2/kernel": (4, D),
    }
    h = np.broadcast_to(params["initial"], (2, 3, D))
    for number, (x, got) in enumerate(zip(inputs, states, strict=True)):
        own = np.asarray(x).mean((2, 3)) @ params[f"contribution_conv{number}"]["kernel"]
        normed = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
        z = np.concatenate([normed, own], -1) @ params["hidden"]["kernel"]
        z = np.maximum(z + params["hidden"]["bias"], 0)
        h = h + z @ params["update"]["kernel"] + params["update"]["bias"]
        np.testing.assert_allclose(got, h, rtol=0, atol=1e-12)


def test_at_initialisation_every_contribution_has_a_gradient():
    inputs = [random_input(2, 4, 4, c, seed=c) for c in (3, 6, 4)]
    chain = Chain()
    params = jax.jit(chain.init)(jax.random.key(0), *inputs)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(chain.apply(p, *inputs)[-1] ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-4, jax.tree_util.keystr(path)


def test_the_state_is_float32_for_bfloat16_inputs():
    x = random_input(2, 4, 4, 3).astype(jnp.bfloat16)
    states = jax.eval_shape(Chain().init_with_output, jax.random.key(0), x, x)[0]
    assert {h.dtype for h in states} == {jnp.dtype(jnp.float32)}


def test_append_state_repeats_the_state_at_each_position():
    x, h = random_input(2, 3, 4, 5, 6), random_input(2, 3, D, seed=2)
    context = append_state(x, h)
    assert context.shape == (2, 3, 4, 5, 6 + D)
    np.testing.assert_array_equal(context[..., :6], x)
    np.testing.assert_array_equal(context[1, 2, 3, 4, 6:], h[1, 2])


def test_shapes_that_do_not_fit_are_refused():
    x = jnp.ones((2, 4, 4, 3))
    layer = KernelRepresentation(D)
    with pytest.raises(ValueError, match=r"\(2, 8\)"):
        layer.init(jax.random.key(0), x, jnp.ones((3, D)), layer="conv")
    with pytest.raises(ValueError, match="spatial_axes=2"):
        layer.init(jax.random.key(0), x[0, 0], layer="conv")
