"""Frequency band modulation: low-passes against numpy's Fourier transforms, and published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from layer_cases import assert_published, filled, random_input, sines

from dyn.layers.band_modulation import BandModulation, find_passed, low_passes, modulate_bands

DIVISORS = (2, 4, 8)


def make_mask(shape, divisor):
    """Returns the mask of a low-pass as the authors make it: on a grid of 64, resized to the nearest."""
    *rest, last = shape
    distances = [np.abs(np.fft.fftfreq(64)[np.arange(n) * 64 // n]) for n in rest]
    half = last // 2 + 1
    distances.append(np.fft.rfftfreq(64)[np.arange(half) * 33 // half])
    largest = np.maximum.reduce(np.meshgrid(*distances, indexing="ij")).astype(np.float32)
    return largest < np.float32(0.5 / divisor) + np.float32(1e-8)


def low_pass(x, divisor):
    axes = tuple(range(1, x.ndim - 1))
    spectrum = np.fft.rfftn(x, axes=axes) * make_mask(x.shape[1:-1], divisor)[None, ..., None]
    return np.fft.irfftn(spectrum, s=x.shape[1:-1], axes=axes)


def test_masks_are_those_of_the_authors():
    assert [make_mask((64, 64), divisor).sum() for divisor in DIVISORS] == [496, 153, 45]
    for half, numbers in ((False, (31, 17, 9)), (True, (16, 9, 5))):
        assert tuple(map(len, find_passed(64, DIVISORS, half))) == numbers
    # A frequency is not always treated like its negative.
    assert find_passed(56, DIVISORS, False)[2].tolist() == [-3, -2, -1, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "shape", [(4, 4), (5, 7), (6, 9), (14, 14), (20, 15), (9,), (14,), (14, 5, 28), (1, 1), (1, 2)]
)
def test_low_passes_are_those_of_the_fourier_transform(shape):
    with jax.enable_x64(True):
        x = np.asarray(random_input(2, *shape, 3, dtype=np.float64))
        for divisor, got in zip(DIVISORS, low_passes(jnp.asarray(x), DIVISORS), strict=True):
            np.testing.assert_allclose(got, low_pass(x, divisor), rtol=0, atol=1e-14)


def test_published_numbers():
    maps = {
        f"conv{n + 1}": {
            "kernel": sines((1, 18, 3, 3), 1.5 + n).transpose(2, 3, 1, 0),
            "bias": sines((1,), 2.5 + n),
        }
        for n in range(3)
    }
    x = sines((2, 18, 6, 6), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    layer = BandModulation(dtype=jnp.float64, param_dtype=jnp.float64)
    entries = (0.07147281, 0.50912931, 0.77171493, 0.91844907, 0.61596220)
    sums = (18.6707021683, 848.5489437054)
    sown = assert_published(layer, {"params": maps}, x, sums, entries)
    assert sown["weights"][0]["band"].shape == (2, 3)


ACTIVATIONS = {
    "sigmoid": lambda v: 2 / (1 + np.exp(-v)),
    "tanh": lambda v: 1 + np.tanh(v),
    "softmax": lambda v: v.shape[-1] * np.exp(v) / np.exp(v).sum(-1, keepdims=True),
}


@pytest.mark.parametrize(
    ("activation", "groups", "rest"),
    [("softmax", 2, False), ("tanh", 3, True), ("sigmoid", 65, True)],
)
def test_follows_the_formulas(activation, groups, rest):
    layer = BandModulation(
        groups=groups,
        activation=activation,
        weigh_rest=rest,
        param_dtype=jnp.float64,
        dtype=jnp.float64,
    )
    with jax.enable_x64(True):
        x = random_input(2, 14, 7, 6, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y = np.asarray(jax.jit(layer.apply)(variables, x))
    x, groups = np.asarray(x), min(groups, 6)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    passes = [x, *(low_pass(x, divisor) for divisor in DIVISORS)]
    bands = [*(passes[n] - passes[n + 1] for n in range(3)), passes[3]]
    want = 0 if rest else passes[3]
    for n in range(3 + rest):
        kernel, bias = (variables["params"][f"conv{n + 1}"][name] for name in ("kernel", "bias"))
        logits = np.zeros((*x.shape[:-1], groups))
        for group in range(groups):
            own = padded[..., group * 6 // groups : (group + 1) * 6 // groups]
            for i in range(3):
                for j in range(3):
                    logits[..., group] += own[:, i : i + 14, j : j + 7] @ kernel[i, j, :, group]
        weights = ACTIVATIONS[activation](logits + bias)
        want = want + np.repeat(weights, 6 // groups, -1) * bands[n]
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)


def test_gradients():
    with jax.enable_x64(True):
        x = random_input(1, 5, 6, 2, dtype=np.float64)
        weights = random_input(1, 5, 6, 1, 3, seed=2, dtype=np.float64)
        check_grads(lambda *args: modulate_bands(*args, DIVISORS), (x, weights), 1, ["rev"])
