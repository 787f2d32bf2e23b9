"""DecoupledDynamicFilter against a loop over positions, and against the authors' formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, sines
from numpy_oracle import axis_reads

from dyn.diagnostics import count_macs
from dyn.layers import DecoupledDynamicFilter
from dyn.layers.decoupled_filter import standardise


@pytest.mark.parametrize(
    ("fields", "sums", "entries"),
    [
        (
            dict(),
            (24.2502234601, 385.3575166416),
            (0.22528512, 0.47769364, 0.34111212, 0.20164236, 0.05787196),
        ),
        (
            dict(strides=2),
            (6.6384579247, 109.7880611223),
            (0.22528512, 0.34111212, 0.0689612, -0.08812565, 0.48364151),
        ),
        (
            dict(combine="add", heads=2),
            (16.1128362923, 2249.4770309741),
            (-2.24691221, -3.65624022, -3.43792286, -3.0463091, -0.52158204),
        ),
    ],
)
def test_published_numbers(fields, sums, entries):
    heads = fields.get("heads", 1)
    layer = DecoupledDynamicFilter(
        10, (3, 3), padding=1, use_bias=False, min_squeeze=1, param_dtype=jnp.float64, **fields
    )
    attention = {
        "position": {"kernel": sines((9 * heads, 10), 0.3).T, "bias": sines((9 * heads,), 0.4)},
        "squeeze": {"kernel": sines((2, 10), 0.5).T, "bias": sines((2,), 0.6)},
        "channel": {"kernel": sines((90, 2), 0.7).T, "bias": sines((90,), 0.8)},
        "std": (1 + sines((10, 9), 0.9)).T.reshape(3, 3, 10),
    }
    x = sines((2, 10, 6, 6), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    assert_published(layer, {"params": {"attention": attention}}, x, sums, entries)


def normalise(taps, axis):
    return (taps - taps.mean(axis, keepdims=True)) / taps.std(axis, ddof=1, keepdims=True)


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_a_filter_per_position_and_one_per_channel(combine):
    """In 1-D, with padding, stride and dilation."""
    geometry = dict(strides=2, padding=[(3, 1)], kernel_dilation=2)
    layer = DecoupledDynamicFilter(
        4, 3, **geometry, heads=2, combine=combine, param_dtype=jnp.float64
    )
    x = np.random.default_rng(1).standard_normal((2, 7, 4))
    with jax.enable_x64(True):
        variables = filled(layer, jnp.asarray(x), dtype=np.float64)
        y = jax.jit(layer.apply)(variables, x)
    params = variables["params"]
    p, gain = params["attention"], np.sqrt(2 / 3)
    reads = axis_reads(7, 3, stride=2, padding=(3, 1), input_dilation=1, kernel_dilation=2)
    centres = [-1, 1, 3, 5]  # outside: the nearest inside
    assert y.shape == (2, len(centres), 4)
    for b in range(2):
        z = np.maximum(x[b].mean(0) @ p["squeeze"]["kernel"] + p["squeeze"]["bias"], 0)
        of_channels = (z @ p["channel"]["kernel"] + p["channel"]["bias"]).reshape(4, 3).T
        of_channels = normalise(of_channels, 0) * p["std"]
        for n, (places, centre) in enumerate(zip(reads, centres, strict=True)):
            seen = x[b, max(centre, 0)]
            at_position = (seen @ p["position"]["kernel"] + p["position"]["bias"]).reshape(2, 3)
            at_position = gain * np.repeat(normalise(at_position, 1).T, 2, axis=1)
            kernel = at_position * of_channels if combine == "mul" else at_position + of_channels
            read = np.stack([np.zeros(4) if at is None else x[b, at] for at in places])
            want = (read * kernel).sum(0) + params["bias"]
            np.testing.assert_allclose(y[b, n], want, rtol=0, atol=1e-9)


def test_filters_without_deviation_have_finite_gradients():
    def loss(filters):
        return jnp.sum(standardise(filters, (-1,)) * jnp.arange(3.0))

    value, gradient = jax.value_and_grad(loss)(jnp.full((2, 3), 0.7))
    assert value == 0 and not gradient.any()
    assert np.abs(jax.grad(loss)(random_input(2, 3))).max() > 0.1
    one = standardise(jnp.array([[0.0], [100.0]]), (-1,))  # a single tap is a gate
    np.testing.assert_array_equal(one, [[1.0], [2.0]])


def test_impossible_fields_are_refused():
    x = jax.ShapeDtypeStruct((2, 4, 4, 6), jnp.float32)
    for fields, message in (
        (dict(combine="sum"), "combine='sum' is unknown: write 'mul' or 'add'"),
        (dict(heads=4), "heads=4 must divide the 6 features"),
    ):
        with pytest.raises(ValueError, match=message):
            init_shapes(partial(DecoupledDynamicFilter, 6, (3, 3))(**fields), x)


def test_costs():
    """Filters of 2 heads at each position and of 8 channels, from 4 numbers; 9 taps of each output."""
    layer = DecoupledDynamicFilter(8, (3, 3), 2, heads=2)
    x = jax.ShapeDtypeStruct((2, 6, 4, 8), jnp.float32)
    macs = count_macs(layer.apply, init_shapes(layer, x), x)
    assert macs == 2 * 6 * (8 * 18 + 9 * 8) + 2 * (8 * 4 + 4 * 72)
