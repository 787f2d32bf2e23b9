"""Layers in geometries of their own, and with masks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import CONVOLUTIONS, LOCAL, POSITIONS, filled, random_input

pytestmark = pytest.mark.matrix

# One for each way of a layer's own; all the others are proven where the geometry is resolved.
GEOMETRY = {
    "1d, a bare number": dict(x=(3, 9, 4), kernel_size=3, strides=2),
    "1d causal, dilated": dict(x=(3, 9, 4), kernel_size=(3,), padding="CAUSAL", kernel_dilation=2),
    "2d two batch axes, reflect": dict(x=(3, 2, 6, 5, 4), kernel_size=(3, 3), padding="REFLECT"),
    "2d pairs, input dilated": dict(
        x=(3, 4, 3, 4),
        kernel_size=(3, 3),
        padding=[(1, 1), (0, 3)],
        input_dilation=(2, 3),
        strides=2,
    ),
    "2d groups": dict(x=(3, 6, 5, 4), kernel_size=(3, 3), feature_group_count=2),
    "2d depthwise": dict(x=(3, 6, 5, 6), kernel_size=(3, 3), feature_group_count=6),
    "2d pointwise, no bias": dict(
        x=(3, 6, 5, 4), kernel_size=(1, 1), padding=1, strides=2, use_bias=False
    ),
    "3d": dict(x=(2, 4, 3, 3, 4), kernel_size=(2, 1, 2), strides=(2, 1, 1)),
}


def is_supported(name, geometry):
    """Returns whether the method supports a geometry; `test_protocol` has the errors."""
    if name == "DCDConv":
        return "feature_group_count" not in geometry
    if name.startswith("RotatedConv"):
        size = geometry["kernel_size"]
        return size in ((1, 1), (2, 2), (3, 3))
    return True


NOT_LINEAR = ("RotatedConv, max", "DeformableConv", "SelectiveKernel")
POSSIBLE = [(n, g) for n in CONVOLUTIONS for g in GEOMETRY if is_supported(n, GEOMETRY[g])]


def constant_context(name, vector, x, rank):
    """Repeats a vector as the context of all inputs `[*batch, *spatial, I]`."""
    # The windows that `FrequencyDynamicConv` sees of a context would reach over the edges.
    everywhere = name in LOCAL and name != "FrequencyDynamicConv"
    axes = x.shape[:-1] if everywhere else x.shape[: x.ndim - rank - 1]
    return jnp.broadcast_to(vector, (*axes, vector.shape[-1]))


VECTOR = random_input(5, seed=2)


@functools.cache
def layer_alone(name, size, in_features, groups, use_bias):
    """Returns variables, and the kernel and bias that a layer convolves with if the context is `VECTOR`.

    They are its outputs for an impulse in each channel, in the plainest geometry.
    """
    fields = dict(padding="VALID", feature_group_count=groups, use_bias=use_bias)
    layer = CONVOLUTIONS[name].layer(6, size, **fields)
    x = np.zeros((in_features + 1, *(2 * k - 1 for k in size), in_features), np.float32)
    for channel in range(in_features):
        x[(channel, *(k - 1 for k in size), channel)] = 1
    context = constant_context(name, VECTOR, x, len(size))
    variables = filled(layer, x, context)
    # FDConv's local attention and bands look at the input whatever the context is; here they are constant.
    if "local" in variables["params"]:
        variables["params"]["local"]["conv"]["kernel"] *= 0
    if "bands" in variables["params"]:
        for parameter in jax.tree.leaves(variables["params"]["bands"]):
            parameter *= 0
    y = np.asarray(jax.jit(layer.apply)(variables, x, context))
    bias = y[-1].reshape(-1, 6)[0]  # the output for zeros
    # The outputs around an impulse are the kernel, reversed.
    kernel = np.flip(np.moveaxis(y[:-1] - y[-1], 0, -2), tuple(range(len(size))))
    by_group = np.split(kernel, groups, axis=-1)
    blocks = [np.split(k, groups, axis=-2)[group] for group, k in enumerate(by_group)]
    return variables, {"kernel": np.concatenate(blocks, axis=-1), "bias": bias}


@functools.cache
def static(geometry):
    """Returns an input and `nn.Conv` with a geometry, compiled."""
    fields = {k: v for k, v in GEOMETRY[geometry].items() if k not in ("x", "use_bias")}
    conv, x = nn.Conv(6, **fields), random_input(*GEOMETRY[geometry]["x"])
    return x, jax.jit(lambda params: conv.apply({"params": params}, x))


@pytest.mark.parametrize(("name", "geometry"), POSSIBLE)
def test_with_a_constant_context_a_layer_is_nn_conv(name, geometry):
    """The kernel is read from the layer without strides and padding, and used by `nn.Conv` with them."""
    fields = {k: v for k, v in GEOMETRY[geometry].items() if k != "x"}
    layer = CONVOLUTIONS[name].layer(6, **fields)
    x, conv = static(geometry)
    size = fields["kernel_size"]
    size = (size,) if isinstance(size, int) else size
    variables, params = layer_alone(
        name, size, x.shape[-1], layer.feature_group_count, layer.use_bias
    )
    context = constant_context(name, VECTOR, x, len(size))
    if name in NOT_LINEAR:  # only its shape can be compared
        y, want = jax.eval_shape(layer.apply, variables, x, context), jax.eval_shape(conv, params)
    else:
        y, want = jax.jit(layer.apply)(variables, x, context), conv(params)
        assert np.abs(params["kernel"]).max() > 0.01
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    assert y.shape == want.shape and y.dtype == want.dtype


@pytest.mark.parametrize(
    "name", [n for n in CONVOLUTIONS if n not in ("DCDConv", *NOT_LINEAR[1:], *POSITIONS)]
)
def test_a_mask_hides_weights(name):
    mask = np.random.default_rng(3).integers(0, 2, (3, 3, 4, 6))
    if name.startswith("RotatedConv"):
        mask[:] = mask[0, 0]  # positions turn with the kernel, features do not
    layer = CONVOLUTIONS[name].layer(mask=jnp.asarray(mask))
    variables, params = layer_alone(name, (3, 3), 4, 1, True)

    # The output for an impulse in a channel, at each of the positions around it.
    x = np.zeros((5, 3, 3, 4), np.float32)
    for channel in range(4):
        x[channel, 1, 1, channel] = 1
    y = np.asarray(jax.jit(layer.apply)(variables, x, constant_context(name, VECTOR, x, 2)))
    kernel = np.moveaxis((y[:-1] - y[-1])[:, ::-1, ::-1], 0, -2)
    np.testing.assert_array_equal(kernel[mask == 0], 0)
    if name == "SpectralNormConv":  # the masked kernel has another norm
        assert np.abs(kernel[mask == 1]).min() > 0
    else:
        np.testing.assert_allclose(kernel, params["kernel"] * mask, rtol=1e-4, atol=1e-5)
