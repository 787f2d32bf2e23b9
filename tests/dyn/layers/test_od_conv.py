"""ODConv against published numbers and an independent computation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import assert_published, filled, random_input, sines

from dyn.layers import ODConv
from dyn.schedules import set_temperature

# Parity with the authors' code, by numbers published with the formulas: all arrays are sines.


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
    assert_published(layer, variables, x, sums, entries)


# The formulas in numpy.


def attention_by_numpy(variables, context, kernel_size, norm="batch", statistics=None):
    """Returns the weights (channel, filter, spatial, kernel) of section 3.2, None without a head."""
    params = variables["params"]["attention"]
    t = float(variables["attention"]["attention"]["temperature"])
    z = np.asarray(context) @ np.asarray(params["squeeze"]["kernel"])
    if norm != "none":
        if norm == "layer":
            mean, var = z.mean(1, keepdims=True), z.var(1, keepdims=True)
        elif statistics == "batch":
            mean, var = z.mean(0), z.var(0)
        else:
            running = variables["batch_stats"]["attention"]["norm"]
            mean, var = np.asarray(running["mean"]), np.asarray(running["var"])
        z = (z - mean) / np.sqrt(var + 1e-5)
        z = z * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    z = np.maximum(z, 0)

    def logits(name):
        return (z @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])) / t

    def sigmoid(name):
        return 1 / (1 + np.exp(-logits(name))) if name in params else None

    spatial, kernel = sigmoid("spatial"), None
    if spatial is not None:
        spatial = spatial.reshape(-1, *kernel_size)
    if "kernel" in params:
        kernel = np.exp(logits("kernel"))
        kernel = kernel / kernel.sum(1, keepdims=True)
    return sigmoid("channel"), sigmoid("filter"), spatial, kernel


def od_conv_by_definition(variables, x, weights, **geometry):
    """Computes ODConv from its attention's weights."""
    channel, filters, spatial, mix = weights
    params = variables["params"]
    everywhere = (slice(None), *(None,) * (x.ndim - 2))
    x = np.asarray(x) * channel[everywhere]
    y = numpy_oracle.convolve(x, params["kernel"], mix, spatial, **geometry)
    y = y if filters is None else y * filters[everywhere]
    return y + np.asarray(params["bias"])


@pytest.mark.parametrize(
    ("case", "norm"),
    [
        ("usual", "batch"),
        ("groups", "batch"),
        ("depthwise", "layer"),
        ("depthwise, multiplied", "batch"),
        ("pointwise", "none"),
    ],
)
def test_follows_the_formulas(case, norm):
    fields = {
        "usual": dict(features=6, kernel_size=(3, 2), strides=2, num_kernels=3),
        "groups": dict(features=6, kernel_size=(3, 3), feature_group_count=2),
        "depthwise, multiplied": dict(features=8, kernel_size=(3, 3), feature_group_count=4),
        "depthwise": dict(features=4, kernel_size=(3, 3), feature_group_count=4, num_kernels=1),
        "pointwise": dict(features=6, kernel_size=(1, 1), num_kernels=2),
    }[case]
    layer = ODConv(**fields, attention_norm=norm, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, 5, 4, 4, dtype=np.float64)
        variables = set_temperature(filled(layer, x, dtype=np.float64), 1.7)
        # flax's LayerNorm needs promotion in float64.
        with jax.numpy_dtype_promotion("standard" if norm == "layer" else "strict"):
            y = jax.jit(layer.apply)(variables, x)
        weights = attention_by_numpy(variables, np.asarray(x).mean((1, 2)), layer.kernel_size, norm)
        window = dict(strides=layer.strides, feature_group_count=layer.feature_group_count)
        want = od_conv_by_definition(variables, x, weights, **window)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)


# Kernels of a different form.


# Context, temperature and statistics.


def test_batch_statistics_are_used_exactly_when_they_are_mutable():
    x = random_input(5, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
    variables = filled(layer, x)
    context = np.asarray(x).mean((1, 2))
    running = od_conv_by_definition(
        variables, x, attention_by_numpy(variables, context, (3, 3), statistics="running")
    )
    batch = od_conv_by_definition(
        variables, x, attention_by_numpy(variables, context, (3, 3), statistics="batch")
    )
    assert np.abs(running - batch).max() > 0.01

    @jax.jit
    def compute(variables):
        return layer.apply(variables, x), layer.apply(variables, x, mutable=["batch_stats"])

    inference, (y, state) = compute(variables)
    np.testing.assert_allclose(inference, running, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y, batch, rtol=1e-4, atol=1e-5)
    # torch's momentum 0.1 is flax's 0.9.
    z = context @ np.asarray(variables["params"]["attention"]["squeeze"]["kernel"])
    before = variables["batch_stats"]["attention"]["norm"]
    after = state["batch_stats"]["attention"]["norm"]
    for name, now in (("mean", z.mean(0)), ("var", z.var(0))):
        np.testing.assert_allclose(after[name], 0.9 * before[name] + 0.1 * now, rtol=1e-4)
