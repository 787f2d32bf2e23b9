"""EfficientChannelAttention against published numbers and an independent computation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, sines

from dyn.diagnostics import count_macs
from dyn.layers import EfficientChannelAttention
from dyn.layers.efficient_channel_attention import choose_kernel_size


def test_published_parity_vector():
    x = sines((2, 16, 6, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    kernel = sines((1, 1, 3), 0.3).transpose(2, 1, 0)
    layer = EfficientChannelAttention(param_dtype=jnp.float64)
    sums = (1.3936924123, 305.2510702134)
    entries = (0.02543209, 0.14062462, 0.24841084, 0.34311396, 0.32733201)
    assert_published(layer, {"params": {"conv": {"kernel": kernel}}}, x, sums, entries)


@pytest.mark.parametrize("spatial", [(5,), (2, 3, 2)])
def test_follows_the_formula(spatial):
    layer = EfficientChannelAttention(kernel_size=5, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, *spatial, 4, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    kernel = variables["params"]["conv"]["kernel"][:, 0, 0]
    mean = np.asarray(x).mean(tuple(range(1, x.ndim - 1)))
    logits = np.zeros((3, 4))
    for c in range(4):
        for t in range(5):
            if 0 <= c + t - 2 < 4:
                logits[:, c] += kernel[t] * mean[:, c + t - 2]
    weights = 1 / (1 + np.exp(-logits))
    want = np.asarray(x) * weights.reshape(3, *(1,) * len(spatial), 4)
    np.testing.assert_allclose(y, want, rtol=1e-12)
    (sown,) = state["intermediates"]["weights"]
    np.testing.assert_allclose(sown["channel"], weights, rtol=1e-12)


def test_the_kernel_grows_with_the_channels():
    sizes = {8: 3, 16: 3, 64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7, 1: 3}
    assert {channels: choose_kernel_size(channels) for channels in sizes} == sizes
    x = jax.ShapeDtypeStruct((2, 5, 5, 128), jnp.float32)
    layer = EfficientChannelAttention()
    assert count_macs(layer.apply, init_shapes(layer, x), x) == 2 * 128 * 5


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="must be odd"):
        init_shapes(EfficientChannelAttention(kernel_size=4), jnp.ones((2, 5, 8)))
