"""SqueezeExcite against an independent computation and by its parameter counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of

from dyn.diagnostics import count_parameters
from dyn.layers.squeeze_excite import SqueezeExcite
from dyn.models import ResNet18


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


@pytest.mark.parametrize(("channels", "squeezed"), [(64, 4), (100, 6), (8, 1)])
def test_parameters(channels, squeezed):
    x = jax.ShapeDtypeStruct((2, 5, 5, channels), jnp.float32)
    assert shapes_of(init_shapes(SqueezeExcite(), x)) == {
        "params/reduce/kernel": (channels, squeezed),
        "params/reduce/bias": (squeezed,),
        "params/expand/kernel": (squeezed, channels),
        "params/expand/bias": (channels,),
    }


def test_parameters_of_resnet18():
    """11,689,512 + 2 sum of 2 C^2 / 16 + C / 16 + C over the stages: the 11.78 million of the field."""
    attention = {
        c: count_parameters(
            init_shapes(SqueezeExcite(), jax.ShapeDtypeStruct((2, 4, 4, c), jnp.float32))
        )
        for c in (64, 128, 256, 512)
    }
    assert attention == {c: 2 * c * c // 16 + c // 16 + c for c in attention}
    by_formula = 11_689_512 + 2 * sum(attention.values())
    net = ResNet18(num_classes=1000, attention=SqueezeExcite)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = init_shapes(net, x)["params"]
    assert count_parameters(params) == by_formula == 11_778_592


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
        init_shapes(layer, *args)
