"""RotatedConv: its formulas, and its exact equivariance under rotations of the input."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import filled, init_shapes, random_input

from dyn.layers.rotated_conv import OrientationPool, RotatedConv
from dyn.ops.rotation import rotate_kernels

POOLINGS = ["mixture", "max", "mean", "attention"]


def quarter(x):
    """Turns pictures `[..., H, W, C]` by 90 degrees."""
    return jnp.rot90(x, axes=(x.ndim - 3, x.ndim - 2))


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


@pytest.mark.parametrize(
    ("pooling", "num_kernels"), [("mixture", 2), ("max", 1), ("mean", 2), ("attention", 2)]
)
def test_follows_the_formulas(pooling, num_kernels):
    n, k = 6, num_kernels
    geometry = dict(strides=2, feature_group_count=2)
    own = dict(num_kernels=k, rotations=n, pooling=pooling, attention_norm="batch")
    layer = RotatedConv(4, (3, 3), **geometry, **own, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, 5, 6, 4, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
        sown = state["intermediates"] if "intermediates" in state else {}
        params = variables["params"]
        bank = np.asarray(rotate_kernels(jnp.asarray(params["kernel"]), n))
        convolve = partial(numpy_oracle.convolve, **geometry)
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


# Rotations of the input.


@pytest.mark.parametrize(
    ("rotations", "fields"), [(4, dict(kernel_dilation=2)), (8, dict(padding="VALID", strides=2))]
)
def test_rotating_the_input_permutes_the_responses_exactly(rotations, fields):
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


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_over_orientations_it_is_equivariant(pooling):
    """And its mean over space is invariant."""
    layer = RotatedConv(3, (3, 3), num_kernels=2, pooling=pooling, param_dtype=jnp.float64)
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


# The rest.


def test_pooling_in_bfloat16_adds_up_gradients_of_all_positions():
    pool = OrientationPool(jnp.float32, jnp.float32)
    x = 1 + jnp.arange(4.0)[:, None] + 0.1 * random_input(1, 64, 64, 4, 8)
    variables = {"params": {"score": {"kernel": jnp.full((8, 1), 0.02)}}}

    @jax.jit
    @jax.grad
    def differentiate(variables, x):
        return jnp.sum(pool.apply(variables, x).astype(jnp.float32))

    low, want = (
        differentiate(variables, x.astype(dtype))["params"]["score"]["kernel"]
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    np.testing.assert_allclose(low, want, rtol=0.02)


def test_a_mask_is_refused_where_it_would_turn():
    x, mask = random_input(1, 5, 5, 4), np.ones((3, 3, 4, 4))
    mask[2] = 0
    for fields in (dict(), dict(pooling="max"), dict(num_kernels=2)):
        with pytest.raises(ValueError, match="mask would turn"):
            init_shapes(RotatedConv(4, (3, 3), mask=mask, **fields), x)
    layer = RotatedConv(4, (3, 3), mask=mask, rotations=1)
    y = layer.apply(filled(layer, x), jnp.zeros_like(x).at[:, 4].set(1.0))
    np.testing.assert_array_equal(y[:, 3], y[:, 2])  # the row below it is hidden
    init_shapes(RotatedConv(4, (1, 1), mask=np.ones((1, 1, 4, 4))), x)


def test_a_pointwise_kernel_has_one_orientation():
    x = random_input(2, 5, 5, 4)
    layer, static = RotatedConv(6, (1, 1)), nn.Conv(6, (1, 1))
    variables = filled(layer, x)
    assert set(variables["params"]) == {"kernel", "bias"}
    params = {**variables["params"], "kernel": variables["params"]["kernel"][0]}
    want = static.apply({"params": params}, x)
    np.testing.assert_allclose(layer.apply(variables, x), want, rtol=1e-5, atol=1e-6)
