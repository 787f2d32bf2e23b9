"""ODConv against published numbers and an independent computation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input, shapes_of, sines
from od_conv_oracle import attention_by_numpy, od_conv_by_definition

from dyn.layers import ODConv
from dyn.schedules import set_temperature

# Parity with the authors' code, through numbers published with the formulas: all arrays are sines.


PARITY = {
    "OD-A": (
        dict(features=6, num_kernels=4, strides=1),
        1.0,
        (-0.2474104704, 5.6565939282),
        (-0.02704542, -0.03228635, -0.02701181, -0.02031463, -0.01024262),
    ),
    "OD-B": (
        dict(features=6, num_kernels=4, strides=2, feature_group_count=2),
        30.0,
        (-0.0171739103, 2.1733143118),
        (0.0055553, 0.02314239, 0.01993977, 0.01918275, 0.01387998),
    ),
    "OD-C": (
        dict(features=4, num_kernels=2, feature_group_count=4),
        1.0,
        (1.6865131677, 50.9333978097),
        (-0.19255884, -0.19619766, -0.15400308, -0.10369758, -0.12592383),
    ),
    "OD-D": (
        dict(features=6, num_kernels=1, kernel_size=(1, 1), padding=0),
        1.0,
        (1.0922175351, 53.6946449472),
        (-0.30296597, -0.22755278, -0.14015502, -0.04537569, 0.04802693),
    ),
}


@pytest.mark.parametrize("name", PARITY)
def test_published_parity_vector(name):
    fields, temperature, sums, entries = PARITY[name]
    fields = {"kernel_size": (3, 3), "padding": 1, **fields}
    layer = ODConv(**fields, use_bias=False, param_dtype=jnp.float64)
    channels, squeezed = 4, 16
    k, o, groups = layer.num_kernels, layer.features, layer.feature_group_count

    # Everything is made in torch's layout and then transposed to ours.
    x = sines((2, channels, 5, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    kernel = sines((k, o, channels // groups, *layer.kernel_size), 0.7).transpose(0, 3, 4, 2, 1)

    def head(size, phase):
        return {"kernel": sines((size, squeezed), phase).T, "bias": sines((size,), phase + 1)}

    heads = {"channel": head(channels, 1.0)}
    if not groups == channels == o:
        heads["filter"] = head(o, 2.0)
    if layer.kernel_size != (1, 1):
        heads["spatial"] = head(math.prod(layer.kernel_size), 3.0)
    if k > 1:
        heads["kernel"] = head(k, 4.0)
    vector = (squeezed,)
    variables = {
        "params": {
            "kernel": kernel,
            "attention": {
                "squeeze": {"kernel": sines((squeezed, channels), 0.1).T},
                "norm": {"scale": 1 + sines(vector, 0.2, 0.1), "bias": sines(vector, 0.3, 0.1)},
                **heads,
            },
        },
        "batch_stats": {
            "attention": {
                "norm": {"mean": sines(vector, 0.4, 0.1), "var": 1 + sines(vector, 0.5, 0.2)}
            }
        },
        "attention": {"attention": {"temperature": np.asarray(temperature)}},
    }
    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.asarray, variables)
        x = jnp.asarray(x)
        assert shapes_of(variables) == shapes_of(filled(layer, x))
        y = np.asarray(jax.jit(layer.apply)(variables, x))
    assert y.dtype == np.float64
    y = y.transpose(0, 3, 1, 2).ravel()
    # Sums are printed with ten digits after the point, entries with eight.
    np.testing.assert_allclose((y.sum(), np.abs(y).sum()), sums, rtol=0, atol=1e-10)
    np.testing.assert_allclose((*y[:4], y[-1]), entries, rtol=0, atol=6e-9)


# The formulas, once more and with nothing shared with the library.


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("case", ["usual", "depthwise", "pointwise"])
def test_follows_the_formulas(case, norm):
    fields = {
        "usual": dict(features=6, kernel_size=(3, 2), strides=2, num_kernels=3),
        "depthwise": dict(features=4, kernel_size=(3, 3), feature_group_count=4, num_kernels=1),
        "pointwise": dict(features=6, kernel_size=(1, 1), num_kernels=2),
    }[case]
    layer = ODConv(**fields, attention_norm=norm, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, 5, 4, 4, dtype=np.float64)
        variables = set_temperature(filled(layer, x, dtype=np.float64), 1.7)
        # LayerNorm is one of flax's norms that promote by themselves (see `filled`).
        with jax.numpy_dtype_promotion("standard" if norm == "layer" else "strict"):
            y = jax.jit(layer.apply)(variables, x)
        weights = attention_by_numpy(variables, np.asarray(x).mean((1, 2)), layer.kernel_size, norm)
        window = dict(strides=layer.strides, feature_group_count=layer.feature_group_count)
        want = od_conv_by_definition(variables, x, weights, **window)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)
