"""ODConv against published numbers, and its statistics in training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_published, filled, random_input, sines

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


def test_training_uses_and_updates_the_statistics_of_the_batch():
    x = random_input(5, 5, 5, 4)
    layer = ODConv(6, (3, 3), num_kernels=2)
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
