"""SqueezeExcite against an independent computation and by its parameter counts."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from layer_cases import random_input
from layer_cases import shapes_of as paths

from dyn.diagnostics import count_parameters
from dyn.layers.squeeze_excite import SqueezeExcite
from dyn.models import BasicBlock, ResNet18


def shapes_of(layer, *args):
    return jax.eval_shape(layer.init, jax.random.key(0), *args)


def filled(layer, *args, dtype=np.float32):
    """Variables with a random number everywhere: nothing is zero or one by initialisation."""
    rng = np.random.default_rng(0)
    shapes = shapes_of(layer, *args)
    return jax.tree.map(lambda s: np.asarray(rng.standard_normal(s.shape), dtype), shapes)


def weights_by_numpy(variables, context):
    params = jax.tree.map(np.asarray, variables["params"])
    reduce, expand = params["reduce"], params["expand"]
    z = np.maximum(np.asarray(context) @ reduce["kernel"] + reduce["bias"], 0)
    return 1 / (1 + np.exp(-(z @ expand["kernel"] + expand["bias"])))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("spatial", [(7,), (5, 4), (3, 2, 4), (1, 1)])
def test_follows_the_formula(spatial, given):
    layer = SqueezeExcite(reduction=1 / 4, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, *spatial, 8, dtype=np.float64)
        context = random_input(3, 5, seed=2, dtype=np.float64) if given else None
        args = (x, context) if given else (x,)
        variables = filled(layer, *args, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, *args)
    pooled = np.asarray(x).mean(tuple(range(1, x.ndim - 1)))
    weights = weights_by_numpy(variables, context if given else pooled)
    want = np.asarray(x) * weights.reshape(3, *(1,) * len(spatial), 8)
    np.testing.assert_allclose(y, want, rtol=1e-12, atol=1e-14)
    (sown,) = state["intermediates"]["weights"]
    np.testing.assert_allclose(sown["channel"], weights, rtol=1e-12)


def test_batch_axes_where_the_number_of_spatial_axes_is_given():
    x = random_input(2, 3, 5, 4, 8)
    layer = SqueezeExcite(spatial_axes=2)
    variables = filled(layer, x)
    apply = jax.jit(layer.apply)
    want = apply(variables, x.reshape(6, 5, 4, 8)).reshape(x.shape)
    np.testing.assert_allclose(apply(variables, x), want, rtol=1e-6)
    np.testing.assert_allclose(apply(variables, x[0, 0]), want[0, 0], rtol=1e-5)
    context = random_input(2, 3, 5)
    variables = filled(layer, x, context)
    want = apply(variables, x.reshape(6, 5, 4, 8), context.reshape(6, 5)).reshape(x.shape)
    np.testing.assert_allclose(apply(variables, x, context), want, rtol=1e-6)


@pytest.mark.parametrize(("channels", "squeezed"), [(64, 4), (100, 6), (8, 1)])
def test_parameters(channels, squeezed):
    x = jax.ShapeDtypeStruct((2, 5, 5, channels), jnp.float32)
    assert paths(shapes_of(SqueezeExcite(), x)) == {
        "params/reduce/kernel": (channels, squeezed),
        "params/reduce/bias": (squeezed,),
        "params/expand/kernel": (squeezed, channels),
        "params/expand/bias": (channels,),
    }


def attended_block(norm, **fields):
    """The basic block, its last norm followed by attention."""

    def then_attention(name):
        if name != "norm2":
            return norm(name=name)
        return nn.Sequential([norm(name=name), SqueezeExcite(name="attention")])

    return BasicBlock(norm=then_attention, **fields)


def test_parameters_of_resnet18():
    """11,689,512 + 2 sum of 2 C^2 / 16 + C / 16 + C over the stages: the 11.78 million of the field."""
    attention = {
        c: count_parameters(
            shapes_of(SqueezeExcite(), jax.ShapeDtypeStruct((2, 4, 4, c), jnp.float32))
        )
        for c in (64, 128, 256, 512)
    }
    assert attention == {c: 2 * c * c // 16 + c // 16 + c for c in attention}
    by_formula = 11_689_512 + 2 * sum(attention.values())
    net = ResNet18(num_classes=1000, block=attended_block)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = shapes_of(net, x)["params"]
    assert count_parameters(params) == by_formula == 11_778_592


def test_gradients_by_finite_differences():
    layer = SqueezeExcite(reduction=1 / 2, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(2, 3, 2, 4, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        # Far from the kink of ReLU, where finite differences are wrong.
        variables["params"]["reduce"]["bias"] = np.asarray([5.0, -5.0])
        check_grads(
            jax.jit(layer.apply), (variables, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_the_dtype_and_weighs_in_float32(dtype):
    x = random_input(2, 5, 5, 8).astype(dtype)
    layer = SqueezeExcite()
    y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(filled(layer, x), x)
    assert y.dtype == dtype and y.shape == x.shape
    assert state["intermediates"]["weights"][0]["channel"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("layer", "args", "message"),
    [
        (SqueezeExcite(), (jnp.ones((2, 5, 5, 8), int),), "must be floating point; got int32"),
        (SqueezeExcite(), (jnp.ones((2, 8)),), "at least one spatial axis"),
        (SqueezeExcite(spatial_axes=3), (jnp.ones((5, 5, 8)),), "as many as spatial_axes says"),
        (SqueezeExcite(), (jnp.ones((2, 5, 8)), jnp.ones((3, 4))), r"batch axes \(2,\)"),
    ],
)
def test_errors_say_what_to_do(layer, args, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(layer, *args)
