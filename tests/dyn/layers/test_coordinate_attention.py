"""CoordinateAttention against published numbers and an independent computation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, shapes_of, sines

from dyn.diagnostics import count_macs
from dyn.layers import CoordinateAttention


def test_published_parity_vector():
    x = sines((2, 16, 6, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)

    def linear(inputs, outputs, phase):
        return {"kernel": sines((outputs, inputs), phase).T, "bias": sines((outputs,), phase + 0.1)}

    attention = {
        "reduce": linear(16, 8, 0.3),
        "norm": {"scale": 1 + sines((8,), 0.5, 0.1), "bias": sines((8,), 0.6)},
        "expand0": linear(8, 16, 0.7),
        "expand1": linear(8, 16, 0.9),
    }
    running = {"mean": sines((8,), 0.4, 0.1), "var": 1 + sines((8,), 0.5, 0.2)}
    variables = {
        "params": {"attention": attention},
        "batch_stats": {"attention": {"norm": running}},
    }
    layer = CoordinateAttention(attention_norm="batch", param_dtype=jnp.float64)
    sums = (2.0720746811, 175.8373899004)
    entries = (0.01585829, 0.0869742, 0.15276383, 0.21040634, 0.48619179)
    assert_published(layer, variables, x, sums, entries)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def by_numpy(variables, x):
    """Returns the output and the weights along each axis, without a norm."""
    params = jax.tree.map(np.asarray, variables["params"]["attention"])
    spatial = x.shape[1:-1]
    gates, y = [], x
    for axis, size in enumerate(spatial):
        gate = np.zeros((len(x), size, x.shape[-1]))
        for b in range(len(x)):
            for place in range(size):
                mean = np.take(x[b], place, axis).reshape(-1, x.shape[-1]).mean(0)
                z = mean @ params["reduce"]["kernel"] + params["reduce"]["bias"]
                q = z * np.clip(z + 3, 0, 6) / 6
                expand = params[f"expand{axis}"]
                gate[b, place] = sigmoid(q @ expand["kernel"] + expand["bias"])
        gates.append(gate)
        shape = [1] * len(spatial)
        shape[axis] = size
        y = y * gate.reshape(len(x), *shape, -1)
    return y, gates


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 4)])
def test_follows_the_formulas(spatial):
    layer = CoordinateAttention(min_squeeze=3, attention_norm="none", param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(2, *spatial, 6, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    want, gates = by_numpy(variables, np.asarray(x))
    np.testing.assert_allclose(y, want, rtol=1e-12)
    (sown,) = state["intermediates"]["attention"]["weights"]
    for axis, gate in enumerate(gates):
        np.testing.assert_allclose(sown[f"axis{axis}"], gate, rtol=1e-12)


TIMM = partial(CoordinateAttention, reduction=1 / 24, multiple_of=8, use_bias=False)


@pytest.mark.parametrize(
    ("layer", "widths"),
    [
        (CoordinateAttention(), {64: 8, 256: 8, 512: 16, 520: 16}),
        (TIMM(attention_norm="batch"), {64: 8, 256: 8, 512: 24}),
    ],
)
def test_both_widths_of_the_squeezed_features(layer, widths):
    for channels, squeezed in widths.items():
        x = jax.ShapeDtypeStruct((2, 7, 5, channels), jnp.float32)
        variables = init_shapes(layer, x)
        shapes = shapes_of(variables["params"]["attention"])
        assert shapes["reduce/kernel"] == (channels, squeezed)
        assert ("reduce/bias" in shapes) == layer.use_bias
        macs = count_macs(layer.apply, variables, x)
        assert macs == 2 * (7 + 5) * 2 * channels * squeezed
