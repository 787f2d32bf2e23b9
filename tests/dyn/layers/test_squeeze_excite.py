"""SqueezeExcite against an independent computation, and inputs that it and CBAM refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of

from dyn.layers import CBAM, SqueezeExcite


def weights_by_numpy(variables, context):
    params = jax.tree.map(np.asarray, variables["params"])
    reduce, expand = params["reduce"], params["expand"]
    z = np.maximum(np.asarray(context) @ reduce["kernel"] + reduce["bias"], 0)
    return 1 / (1 + np.exp(-(z @ expand["kernel"] + expand["bias"])))


@pytest.mark.parametrize(("spatial", "with_context"), [((3, 2, 4), False), ((1, 1), True)])
def test_follows_the_formula(spatial, with_context):
    layer = SqueezeExcite(reduction=1 / 4, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, *spatial, 8, dtype=np.float64)
        context = random_input(3, 5, seed=2, dtype=np.float64) if with_context else None
        args = (x, context) if with_context else (x,)
        variables = filled(layer, *args, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, *args)
    pooled = np.asarray(x).mean(tuple(range(1, x.ndim - 1)))
    weights = weights_by_numpy(variables, context if with_context else pooled)
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


@pytest.mark.parametrize(
    ("layer", "args", "message"),
    [
        (SqueezeExcite(), (jnp.ones((2, 5, 5, 8), int),), "floating point"),
        (SqueezeExcite(), (jnp.ones((2, 8)),), "more axes"),
        (CBAM(), (jnp.ones((2, 5, 5, 8), int),), "floating point"),
        (CBAM(), (jnp.ones((2, 8)),), "more axes"),
        (CBAM(spatial_norm="layer"), (jnp.ones((2, 5, 8)),), "write 'batch' or 'none'"),
        (SqueezeExcite(spatial_axes=3), (jnp.ones((5, 5, 8)),), "3 or more axes"),
        (SqueezeExcite(), (jnp.ones((2, 5, 8)), jnp.ones((3, 4))), r"batch axes \(2,\)"),
    ],
)
def test_impossible_inputs_are_refused(layer, args, message):
    with pytest.raises(ValueError, match=message):
        init_shapes(layer, *args)
