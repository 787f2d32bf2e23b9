"""ODConv against published numbers, its statistics in training, and its parameters."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_published, filled, random_input, shapes_of, sines

from dyn.layers import ODConv

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
    layer = ODConv(**fields, use_bias=False, attention_norm="batch", param_dtype=jnp.float64)
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


def test_training_uses_and_updates_the_statistics_of_the_batch():
    x = random_input(5, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2, attention_norm="batch")
    variables = filled(layer, x)
    z = np.asarray(x).mean((1, 2)) @ variables["params"]["attention"]["squeeze"]["kernel"]
    batch = {"mean": z.mean(0), "var": z.var(0)}

    @jax.jit
    def compute(variables):
        known = {**variables, "batch_stats": {"attention": {"norm": batch}}}
        return layer.apply(variables, x, mutable=["batch_stats"]), layer.apply(known, x)

    (y, state), want = compute(variables)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    assert np.abs(y - layer.apply(variables, x)).max() > 0.01
    before = variables["batch_stats"]["attention"]["norm"]
    after = state["batch_stats"]["attention"]["norm"]
    for name, now in batch.items():  # torch's momentum 0.1 is flax's 0.9
        np.testing.assert_allclose(after[name], 0.9 * before[name] + 0.1 * now, rtol=1e-4)


# Parameters.


def test_parameters_of_the_usual_case():
    x = jax.ShapeDtypeStruct((2, 6, 5, 8), jnp.float32)
    layer = ODConv(6, (3, 2), feature_group_count=2, num_kernels=4, attention_norm="batch")
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert shapes_of(variables) == {
        "params/kernel": (4, 3, 2, 4, 6),
        "params/bias": (6,),
        "params/attention/squeeze/kernel": (8, 16),  # max(int(8 / 16), 16)
        "params/attention/norm/scale": (16,),
        "params/attention/norm/bias": (16,),
        "params/attention/channel/kernel": (16, 8),
        "params/attention/channel/bias": (8,),
        "params/attention/filter/kernel": (16, 6),
        "params/attention/filter/bias": (6,),
        "params/attention/spatial/kernel": (16, 6),
        "params/attention/spatial/bias": (6,),
        "params/attention/kernel/kernel": (16, 4),
        "params/attention/kernel/bias": (4,),
        "batch_stats/attention/norm/mean": (16,),
        "batch_stats/attention/norm/var": (16,),
        "attention/attention/temperature": (),
    }


@pytest.mark.parametrize(
    ("fields", "heads"),
    [
        (dict(features=8, kernel_size=(3, 3), feature_group_count=8), "channel spatial kernel"),
        # Depthwise with a multiplier has more filters than channels, and keeps their head.
        (
            dict(features=16, kernel_size=(3, 3), feature_group_count=8),
            "channel filter spatial kernel",
        ),
        (dict(features=6, kernel_size=(1, 1)), "channel filter kernel"),
        (dict(features=6, kernel_size=(3, 3), num_kernels=1), "channel filter spatial"),
        (dict(features=6, kernel_size=(1, 1), num_kernels=1), "channel filter"),
        # A kernel with several positions along one axis has a choice.
        (dict(features=6, kernel_size=(1, 3)), "channel filter spatial kernel"),
    ],
)
def test_heads_without_a_choice_are_left_out(fields, heads):
    x = jax.ShapeDtypeStruct((2, 5, 5, 8), jnp.float32)
    shapes = jax.eval_shape(
        ODConv(**fields, use_bias=False, attention_norm="batch").init, jax.random.key(0), x
    )["params"]
    assert set(shapes) == {"kernel", "attention"}
    assert set(shapes["attention"]) == {"squeeze", "norm", *heads.split()}


@pytest.mark.parametrize(
    ("channels", "reduction", "least", "squeezed"),
    [(4, 1 / 16, 16, 16), (512, 1 / 16, 16, 32), (100, 0.25, 16, 25), (4, 1 / 16, 2, 2)],
)
def test_size_of_the_squeezed_vector(channels, reduction, least, squeezed):
    layer = ODConv(2, (1, 1), reduction=reduction, min_squeeze=least)
    x = jax.ShapeDtypeStruct((2, 3, 3, channels), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    assert params["attention"]["squeeze"]["kernel"].shape == (channels, squeezed)


def test_each_candidate_starts_like_a_single_kernel():
    x = jnp.ones((2, 3, 3, 32))
    layer = ODConv(64, (3, 3), num_kernels=3, min_squeeze=128, attention_norm="batch")
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    # fan_out is 3 * 3 * 64 = 576 for one candidate; over the stack it would be 3 times that. 18,432
    # samples give the standard deviation to about 0.5 percent.
    for candidate in kernel:
        assert candidate.std() == pytest.approx(math.sqrt(2 / 576), rel=0.03)
        # Not truncated, as in torch: of this many samples some are beyond 3 deviations.
        assert np.abs(candidate).max() > 3 * candidate.std()
    correlation = np.corrcoef(kernel.reshape(3, -1))
    np.testing.assert_allclose(correlation, np.eye(3), atol=0.05)
    assert not variables["params"]["bias"].any()

    attention = variables["params"]["attention"]
    fan_out = {"squeeze": 128, "channel": 32, "filter": 64, "spatial": 9, "kernel": 3}
    for name, out in fan_out.items():
        # The smallest, [128, 3], has 384 samples: 4 percent for one deviation.
        std = np.asarray(attention[name]["kernel"]).std()
        assert std == pytest.approx(math.sqrt(2 / out), rel=0.15), name
        assert not attention[name].get("bias", np.zeros(1)).any()
    assert (attention["norm"]["scale"] == 1).all() and (attention["norm"]["bias"] == 0).all()
    statistics = variables["batch_stats"]["attention"]["norm"]
    assert (statistics["mean"] == 0).all() and (statistics["var"] == 1).all()
    assert variables["attention"]["attention"]["temperature"] == 1.0


def test_an_initialiser_gets_the_shape_of_one_kernel():
    seen = []

    def init(key, shape, dtype):
        seen.append(tuple(shape))
        return jnp.full(shape, len(seen), dtype)

    layer = ODConv(6, (3, 2), num_kernels=3, kernel_init=init, bias_init=nn.initializers.ones)
    params = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((2, 5, 5, 4)))["params"]
    assert params["kernel"].shape == (3, 3, 2, 4, 6)
    assert set(seen) == {(3, 2, 4, 6)}
