"""DeformableAggregation against its formulas in loops, at its start, and its parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of
from numpy_deform_conv import interpolate
from scipy.special import erf

from dyn.diagnostics import count_macs
from dyn.layers import DeformableAggregation


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def by_numpy(variables, x, layer):
    """Computes the layer for pictures and a kernel of 3x3, with x before y as the authors have them."""
    params = jax.tree.map(np.asarray, variables["params"])

    def linear(name, v):
        return v @ params[name]["kernel"] + params[name]["bias"]

    values, features = linear("value", x), x
    if "depthwise" in params:
        kernel = params["depthwise"]["kernel"]
        pad = (kernel.shape[0] - 1) // 2
        features = numpy_oracle.convolve(
            x, kernel[None], padding=pad, feature_group_count=x.shape[-1]
        )
        features = features + params["depthwise"]["bias"]
    taps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]  # (x, y)
    if layer.remove_center:
        taps.remove((0, 0))
    groups, k = layer.groups, len(taps)
    if layer.version == 3:
        mean, var = features.mean(-1, keepdims=True), features.var(-1, keepdims=True)
        features = (features - mean) / np.sqrt(var + 1e-5) * params["depthwise_norm"]["scale"]
        features = features + params["depthwise_norm"]["bias"]
        features = features * (1 + erf(features / np.sqrt(2))) / 2
        offsets = linear("offset", features).reshape(*x.shape[:3], groups, k, 2)
        mask = np.exp(linear("mask", features).reshape(*x.shape[:3], groups, k))
        mask /= mask.sum(-1, keepdims=True)
    else:
        maps = linear("offset_mask", features)[..., : groups * k * 3]
        maps = maps.reshape(*x.shape[:3], groups, 3 * k)
        offsets = maps[..., : 2 * k].reshape(*x.shape[:3], groups, k, 2)
        mask = maps[..., 2 * k :]
    z = np.zeros_like(values)
    width = x.shape[-1] // groups
    for b, i, j, g in np.ndindex(*x.shape[:3], groups):
        run = slice(g * width, (g + 1) * width)
        for t, (tap_x, tap_y) in enumerate(taps):
            dx, dy = offsets[b, i, j, g, t]
            spread = layer.kernel_dilation
            place = np.array(
                [
                    i + (tap_y * spread + dy) * layer.offset_scale,
                    j + (tap_x * spread + dx) * layer.offset_scale,
                ]
            )
            z[b, i, j, run] += mask[b, i, j, g, t] * interpolate(values[b, ..., run], place)
    if layer.scale_center:
        share = sigmoid(linear("center", features if layer.version == 3 else z))
        share = np.repeat(share, width, axis=-1)
        z = z * (1 - share) + values * share
    return linear("output", z)


@pytest.mark.parametrize(
    "fields",
    [
        dict(version=4, scale_center=True),
        dict(version=4, depthwise_size=3, kernel_dilation=2, remove_center=True),
        dict(version=3, scale_center=True, offset_scale=0.7),
    ],
)
def test_follows_the_formulas(fields):
    layer = DeformableAggregation((3, 3), groups=2, **fields, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(2, 4, 3, 6, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y = jax.jit(layer.apply)(variables, x)
    want = by_numpy(variables, np.asarray(x), layer)
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-12)


def test_version_4_starts_with_nothing_and_version_3_with_the_mean():
    x = random_input(2, 5, 4, 8)
    for version in (3, 4):
        layer = DeformableAggregation((3, 3), groups=2, version=version)
        y, state = jax.jit(partial(layer.init_with_output, mutable=True))(jax.random.key(0), x)
        (sown,) = state["intermediates"]["weights"]
        np.testing.assert_array_equal(sown["offset"], np.zeros((2, 5, 4, 2, 9, 2)))
        np.testing.assert_allclose(
            sown["point"], np.full((2, 5, 4, 2, 9), {3: 1 / 9, 4: 0}[version])
        )
        assert (np.abs(y).max() == 0) == (version == 4)


def test_parameters_and_multiply_adds_in_three_dimensions():
    layer = DeformableAggregation((3, 1, 3), groups=3)
    x = jax.ShapeDtypeStruct((2, 4, 3, 2, 12), jnp.float32)
    variables = init_shapes(layer, x)
    assert shapes_of(variables["params"]) == {
        "value/kernel": (12, 12),
        "value/bias": (12,),
        "offset_mask/kernel": (12, 112),  # 3 groups, 9 points, 4 numbers, in whole eights
        "offset_mask/bias": (112,),
        "output/kernel": (12, 12),
        "output/bias": (12,),
    }
    assert count_macs(layer.apply, variables, x) == 2 * 24 * 12 * (12 + 12 + 112)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kernel_size=(2, 3)), "must be odd"),
        (dict(kernel_size=(3, 3), groups=3), "groups=3 must divide the 8"),
        (dict(kernel_size=(3, 3), version=2), "write 3 or 4"),
        (dict(kernel_size=3), r"\(3, 3\)"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        init_shapes(DeformableAggregation(**fields), jnp.ones((2, 5, 5, 8)))
