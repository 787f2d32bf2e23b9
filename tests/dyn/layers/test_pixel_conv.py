"""PixelDynamicConv against a loop over output positions, and against the image-wise layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import filled, random_input

from dyn.layers.pixel_conv import PixelDynamicConv
from dyn.schedules import set_temperature


def mixture_by_numpy(variables, context):
    """Computes softmax((V ReLU(U c) + b) / T) of any number of context vectors."""
    params = variables["params"]["attention"]
    z = np.maximum(np.asarray(context, np.float64) @ params["squeeze"]["kernel"], 0)
    logits = z @ params["kernel"]["kernel"] + params["kernel"]["bias"]
    e = np.exp(logits / variables["attention"]["attention"]["temperature"])
    return e / e.sum(-1, keepdims=True)


def by_definition(variables, x, mix, **geometry):
    params = variables["params"]
    return numpy_oracle.convolve(x, params["kernel"], mix, **geometry) + params["bias"]


# (shape of the input, fields, the input that each output position looks at along each axis)
CASES = {
    "strided": ((2, 6, 5, 4), dict(kernel_size=(3, 3), strides=2, padding=1), ([0, 2, 4],) * 2),
    "valid": ((2, 5, 6, 4), dict(kernel_size=(3, 2), padding="VALID"), ([1, 2, 3], range(5))),
    "causal": ((2, 7, 4), dict(kernel_size=3, strides=2, padding="CAUSAL"), ([0, 2, 4, 6],)),
    "circular": (
        (2, 6, 4),
        dict(kernel_size=3, strides=2, padding="CIRCULAR"),
        ([0, 2, 4],),
    ),
    "upsampled": (
        (2, 3, 4),
        dict(kernel_size=3, input_dilation=2, padding=[(1, 2)]),
        ([0, 0, 1, 1, 2, 2],),
    ),
    "groups": (
        (2, 3, 2, 2, 4),
        dict(kernel_size=(1, 2, 2), feature_group_count=2),
        (range(3), range(2), range(2)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_output_position_has_its_own_mixture(name):
    shape, fields, seen = CASES[name]
    layer = PixelDynamicConv(6, **fields, num_kernels=3, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(*shape, dtype=np.float64)
        variables = set_temperature(filled(layer, x, dtype=np.float64), 1.7)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
        context = np.asarray(x)[np.ix_(range(2), *seen, range(4))]
        mix = mixture_by_numpy(variables, context)
        geometry = {k: v for k, v in fields.items() if k != "kernel_size"}
        want = by_definition(variables, x, mix, **geometry)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)
    assert np.abs(mix - mix[:, :1]).max() > 0.05  # positions differ
    (weights,) = state["intermediates"]["attention"]["weights"]
    np.testing.assert_allclose(weights["pixel"], mix, rtol=0, atol=1e-12)
    mean = mix.mean(tuple(range(1, mix.ndim - 1)))
    np.testing.assert_allclose(weights["kernel"], mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(6, 5), (3, 3)], ids=["input", "output"])
def test_a_constant_context_gives_the_image_wise_layer(grid):
    x, vector = random_input(2, 3, 6, 5, 4), random_input(2, 3, 7, seed=2)
    pixel = PixelDynamicConv(6, (3, 3), 2, num_kernels=3)
    image = pixel.copy(attention="image")
    variables = filled(pixel, x, vector)
    everywhere = jnp.broadcast_to(vector[:, :, None, None], (2, 3, *grid, 7))
    want = jax.jit(image.apply)(variables, x, vector)
    flat = x.reshape(6, 6, 5, 4)
    mix = mixture_by_numpy(variables, vector.reshape(6, 7))
    definition = by_definition(variables, flat, mix, strides=2)
    np.testing.assert_allclose(want.reshape(definition.shape), definition, rtol=1e-4, atol=1e-5)
    for layer in (pixel, image):
        for context in (everywhere, vector):
            got = jax.jit(layer.apply)(variables, x, context)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_image_attention_looks_at_the_mean():
    x = random_input(2, 6, 5, 4)
    layer = PixelDynamicConv(6, (3, 3), 2, attention="image")
    variables = filled(layer, x)
    want = by_definition(variables, x, mixture_by_numpy(variables, x.mean((1, 2))), strides=2)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_are_over_positions_so_that_one_picture_can_train(norm):
    x = random_input(1, 4, 4, 6)
    layer = PixelDynamicConv(6, (3, 3), attention_norm=norm)
    variables = filled(layer, x)
    step = partial(layer.apply, mutable=["batch_stats", "intermediates"])
    y, state = jax.jit(step)(variables, x)
    assert np.isfinite(y).all()
    if norm == "batch":
        z = np.asarray(x).reshape(16, 6) @ variables["params"]["attention"]["squeeze"]["kernel"]
        mean = 0.9 * variables["batch_stats"]["attention"]["norm"]["mean"] + 0.1 * z.mean(0)
        got = state["batch_stats"]["attention"]["norm"]["mean"]
        np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-6)


def test_contexts_on_other_grids_are_refused():
    x = jnp.ones((2, 6, 6, 4))

    def init(context=None, **fields):
        layer = PixelDynamicConv(6, (3, 3), 2, **fields)
        return jax.eval_shape(layer.init, jax.random.key(0), x, context)

    with pytest.raises(ValueError, match=r"\(6, 6\) and the output's \(3, 3\)"):
        init(jnp.ones((2, 4, 4, 5)))
    with pytest.raises(ValueError, match=r"context must be"):
        init(jnp.ones((3, 5)))
