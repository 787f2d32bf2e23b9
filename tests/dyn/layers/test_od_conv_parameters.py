"""ODConv's parameters: names, shapes and initial values; and the weights that it sows."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import shapes_of

from dyn.layers import ODConv


def test_parameters_of_the_usual_case():
    x = jax.ShapeDtypeStruct((2, 6, 5, 8), jnp.float32)
    layer = ODConv(6, (3, 2), feature_group_count=2, num_kernels=4)
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
    shapes = jax.eval_shape(ODConv(**fields, use_bias=False).init, jax.random.key(0), x)["params"]
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
    layer = ODConv(64, (3, 3), num_kernels=3, min_squeeze=128)
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
