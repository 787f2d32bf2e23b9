"""RotatedConv and its bank of rotated kernels: what a turn of the input does, exactly."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from layer_cases import filled, random_input
from scipy import ndimage

from dyn.layers.rotated_conv import OrientationPool, RotatedConv
from dyn.models import ResNet18
from dyn.ops.rotation import rotate_kernels

POOLINGS = ["mixture", "max", "mean", "attention"]


def quarter(x):
    """Turns pictures `[..., H, W, C]` by 90 degrees."""
    return jnp.rot90(x, axes=(x.ndim - 3, x.ndim - 2))


# The bank.


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rotations", [4, 8, 12])
def test_a_quarter_of_the_bank_further_is_a_quarter_turn_exactly(size, rotations):
    kernels = random_input(2, size, size, 3, 4)
    bank = jax.jit(rotate_kernels, static_argnums=1)(kernels, rotations)
    assert bank.shape == (rotations, *kernels.shape)
    np.testing.assert_array_equal(bank[0], kernels)
    turned = jnp.rot90(bank, axes=(2, 3))
    np.testing.assert_array_equal(jnp.roll(bank, -rotations // 4, axis=0), turned)


@pytest.mark.parametrize("rotations", [1, 3, 5, 8])
def test_bank_is_bilinear_interpolation(rotations):
    """Against scipy, which rotates the same way round, with zeros outside."""
    with jax.enable_x64(True):
        kernel = random_input(5, 5, 1, 1, dtype=np.float64)
        bank = np.asarray(rotate_kernels(kernel, rotations))[..., 0, 0]
    # A rim of zeros, as scipy does not interpolate towards what is outside its array.
    rimmed = np.pad(np.asarray(kernel)[..., 0, 0], 3)
    for r, got in enumerate(bank):
        angle = math.tau * r / rotations
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        offset = 5 - turn @ [5, 5]
        want = ndimage.affine_transform(rimmed, turn, offset, order=1, mode="constant")
        np.testing.assert_allclose(got, want[3:-3, 3:-3], rtol=0, atol=1e-12)


def test_bank_needs_square_kernels():
    with pytest.raises(ValueError, match="must be square"):
        rotate_kernels(jnp.ones((3, 2, 1, 1)), 4)
    with pytest.raises(ValueError, match="rotations=0"):
        rotate_kernels(jnp.ones((3, 3, 1, 1)), 0)


# The layer by its formulas.


def attention_by_numpy(variables, context):
    params, running = (variables[c]["attention"] for c in ("params", "batch_stats"))
    z = context @ params["squeeze"]["kernel"]
    z = (z - running["norm"]["mean"]) / np.sqrt(running["norm"]["var"] + 1e-5)
    z = np.maximum(z * params["norm"]["scale"] + params["norm"]["bias"], 0)
    logits = z @ params["kernel"]["kernel"] + params["kernel"]["bias"]
    return softmax(logits / variables["attention"]["attention"]["temperature"])


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("num_kernels", [1, 2])
def test_follows_the_formulas(pooling, num_kernels):
    n, k = 6, num_kernels
    window = dict(strides=2, feature_group_count=2)
    layer = RotatedConv(
        4, (3, 3), **window, num_kernels=k, rotations=n, pooling=pooling, param_dtype=jnp.float64
    )
    with jax.enable_x64(True):
        x = random_input(3, 5, 6, 4, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
        sown = state["intermediates"] if "intermediates" in state else {}
        params = variables["params"]
        bank = np.asarray(rotate_kernels(jnp.asarray(params["kernel"]), n))
        convolve = jax.jit(partial(oracle.dynamic_conv, **window))
        context = np.asarray(x).mean((1, 2))
        if pooling == "mixture":
            a = attention_by_numpy(variables, context).reshape(3, k, n)
            want = np.asarray(
                convolve(x, bank.swapaxes(0, 1).reshape(-1, 3, 3, 2, 4), a.reshape(3, -1))
            )
            np.testing.assert_allclose(sown["attention"]["weights"][0]["orientation"], a.sum(1))
        else:
            a = attention_by_numpy(variables, context) if k > 1 else np.ones((3, 1))
            each = np.stack([convolve(x, turned, a) for turned in bank])
            if pooling == "max":
                want = each.max(0)
            elif pooling == "mean":
                want = each.mean(0)
            else:
                score = np.maximum(each, 0).mean((2, 3)) @ params["orientation"]["score"]["kernel"]
                t = variables["attention"]["orientation"]["temperature"]
                b = softmax(score[..., 0].T / t)
                want = np.einsum("bn,nbhwo->bhwo", b, each)
                got = sown["orientation"]["weights"][0]["orientation"]
                np.testing.assert_allclose(got, b, rtol=1e-10)
    np.testing.assert_allclose(y, want + params["bias"], rtol=0, atol=1e-12)


# What turning the input does.


@pytest.mark.parametrize("rotations", [4, 8])
@pytest.mark.parametrize("fields", [{}, dict(padding="VALID", strides=2), dict(kernel_dilation=2)])
def test_turning_the_input_permutes_the_responses_exactly(rotations, fields):
    """y_{r + n/4}(rot90 x) = rot90 y_r(x), to the last bit where sums do not round: on integers."""
    layer = RotatedConv(3, (3, 3), **fields, rotations=rotations, pooling="max")
    integers = np.random.default_rng(0).integers(-8, 8, (2, 7, 9, 4))
    x = jnp.asarray(integers, jnp.float32)
    kernel = np.random.default_rng(1).integers(-8, 8, (1, 3, 3, 4, 3)).astype(np.float32)
    bank = rotate_kernels(jnp.asarray(kernel), rotations)
    # Multiples of 1/64 keep the interpolated kernels exact too, quarter turn by quarter turn.
    bank = jnp.round(bank * 64) / 64
    np.testing.assert_array_equal(jnp.rot90(bank, axes=(2, 3)), jnp.roll(bank, -rotations // 4, 0))
    respond = jax.jit(lambda x: layer.compute_responses(x, bank, None))
    straight, turned = respond(x), respond(quarter(x))
    want = jnp.roll(jnp.rot90(straight, axes=(1, 2)), rotations // 4, axis=-2)
    np.testing.assert_array_equal(turned, want)
    assert not np.array_equal(turned, jnp.rot90(straight, axes=(1, 2)))


@pytest.mark.parametrize("num_kernels", [1, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_over_orientations_it_is_equivariant_and_its_mean_over_space_invariant(
    pooling, num_kernels
):
    layer = RotatedConv(
        3, (3, 3), num_kernels=num_kernels, pooling=pooling, param_dtype=jnp.float64
    )
    with jax.enable_x64(True):
        x = random_input(2, 6, 5, 4, dtype=np.float64)
        variables, apply = filled(layer, x, dtype=np.float64), jax.jit(layer.apply)
        y, turned = np.asarray(apply(variables, x)), np.asarray(apply(variables, quarter(x)))
    difference = np.abs(turned - np.rot90(y, axes=(1, 2))).max()
    means = np.abs(turned.mean((1, 2)) - y.mean((1, 2))).max()
    if pooling == "mixture":
        # Its attention cannot tell that the input was turned, and prefers the same orientations.
        assert difference > 0.1
    else:
        assert difference < 1e-12 and means < 1e-12
        # Equivariant and not invariant: the map itself turns.
        assert turned.shape == (2, 5, 6, 3)


def test_orientation_attention_is_passed_on_with_the_responses():
    pool = OrientationPool(dtype=jnp.float32, param_dtype=jnp.float32)
    responses = random_input(2, 5, 5, 8, 3)
    variables = filled(pool, responses)
    y, state = pool.apply(variables, responses, mutable=["intermediates"])
    rolled, after = pool.apply(variables, jnp.roll(responses, 2, -2), mutable=["intermediates"])
    before, after = (s["intermediates"]["weights"][0]["orientation"] for s in (state, after))
    np.testing.assert_allclose(after, jnp.roll(before, 2, -1), rtol=1e-6)
    assert np.ptp(before) > 1e-3
    np.testing.assert_allclose(rolled, y, rtol=1e-5, atol=1e-6)


# The rest.


def test_a_pointwise_kernel_has_one_orientation():
    x = random_input(2, 5, 5, 4)
    layer, static = RotatedConv(6, (1, 1)), nn.Conv(6, (1, 1))
    variables = filled(layer, x)
    assert set(variables["params"]) == {"kernel", "bias"}
    params = {**variables["params"], "kernel": variables["params"]["kernel"][0]}
    want = static.apply({"params": params}, x)
    np.testing.assert_allclose(layer.apply(variables, x), want, rtol=1e-5, atol=1e-6)


def test_parameters_in_resnet18():
    def count(conv):
        net = ResNet18(num_classes=10, conv=conv)
        x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
        shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    static = count(nn.Conv)
    inputs = [64] * 4 + [64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512]
    squeezed = [max(i // 16, 16) for i in inputs]
    generators = sum(i * d + 2 * d + (d + 1) * 8 for i, d in zip(inputs, squeezed, strict=True))
    assert count(partial(RotatedConv, rotations=8)) == static + generators
    # Orientations share one kernel: a pooled layer has no more parameters than a static one.
    assert count(partial(RotatedConv, rotations=8, pooling="max")) == static
    scores = 2 * 2 * (64 + 128 + 256 + 512)
    assert count(partial(RotatedConv, rotations=8, pooling="attention")) == static + scores


@pytest.mark.parametrize("pooling", ["mean", "attention"])  # the others are in the protocol's tests
def test_bfloat16_keeps_attention_in_float32(pooling):
    x = random_input(2, 3, 5, 5, 4)
    layer = RotatedConv(6, (3, 3), num_kernels=2, pooling=pooling, dtype=jnp.bfloat16)
    exact = layer.copy(dtype=jnp.float32)
    variables = filled(layer, x)
    y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    assert y.dtype == jnp.bfloat16 and y.shape == (2, 3, 5, 5, 6)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    want = jax.jit(exact.apply)(variables, x)
    np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.03 * np.abs(want).max())
