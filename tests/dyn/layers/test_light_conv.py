"""LightweightConv and SequenceDynamicConv against a loop over positions, and against the authors' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of, sines
from numpy_oracle import axis_reads

from dyn.diagnostics import count_macs
from dyn.layers import LightweightConv, SequenceDynamicConv


def softmax(logits, axis):
    e = np.exp(logits - logits.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def apply_exactly(layer, params, x, **rngs):
    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.asarray, {"params": params})
        assert shapes_of(variables) == shapes_of(init_shapes(layer, jnp.asarray(x)))
        return np.asarray(jax.jit(layer.apply)(variables, jnp.asarray(x), **rngs))


def assert_numbers(y, sums, entries):
    np.testing.assert_allclose((y.sum(), np.abs(y).sum()), sums, rtol=0, atol=1e-10)
    y = y.ravel()
    np.testing.assert_allclose((*y[:4], y[-1]), entries, rtol=0, atol=6e-9)


def test_published_numbers_of_the_static_kernel():
    layer = LightweightConv(8, 3, padding=1, heads=4, param_dtype=jnp.float64)
    kernel = sines((4, 1, 3), 0.7, 1.5).transpose(2, 1, 0)
    params = {"kernel": kernel, "bias": sines((8,), 0.9)}
    y = apply_exactly(layer, params, sines((2, 8, 7), 0.05, 1.0, 0.23).transpose(0, 2, 1))
    entries = (0.52236827, 0.6997662, 0.90458383, 1.08238738, 0.04979587)
    assert_numbers(y.transpose(0, 2, 1), (31.3377834165, 75.1134685822), entries)


@pytest.mark.parametrize(
    ("fields", "sums", "entries"),
    [
        (
            dict(padding=1),
            (25.0193212458, 51.5973682186),
            (1.04169607, 1.03764806, 0.96357093, 1.06024152, -0.03628294),
        ),
        (
            dict(padding="CAUSAL"),
            (36.1041324014, 57.5669614139),
            (0.4769274, 0.67066409, 0.48873521, 0.41060019, -0.9999756),
        ),
        (
            dict(padding=1, renorm_padding=True),
            (24.9072234492, 54.7603721233),
            (1.36683069, 1.33228885, 0.97331579, 1.07357564, -0.01680734),
        ),
    ],
)
def test_published_numbers_of_a_kernel_per_position(fields, sums, entries):
    layer = SequenceDynamicConv(8, 3, heads=4, logit_bias=True, param_dtype=jnp.float64, **fields)
    logits = {"kernel": sines((12, 8), 0.7).T, "bias": sines((12,), 0.9)}
    params = {"attention": logits, "bias": sines((8,), 1.1)}
    assert_numbers(apply_exactly(layer, params, sines((2, 7, 8), 0.05, 1.0, 0.23)), sums, entries)


# Size of the kernel, geometry, and the input that each output's kernel is made from.
CASES = {
    "causal, longer than the sequence": (9, dict(padding="CAUSAL"), range(6)),
    "strided": (3, dict(strides=2, padding=1), (0, 2, 4)),
    "far out": (3, dict(padding=[(5, 0)]), (0, 0, 0, 0, 0, 1, 2, 3, 4)),
}


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_each_position_has_a_softmax_kernel_for_each_head(name, renorm):
    size, geometry, seen = CASES[name]
    layer = SequenceDynamicConv(
        4, size, **geometry, heads=2, renorm_padding=renorm, param_dtype=jnp.float64
    )
    x = np.random.default_rng(1).standard_normal((2, 6, 4))
    with jax.enable_x64(True):
        params = filled(layer, jnp.asarray(x), dtype=np.float64)["params"]
    y = apply_exactly(layer, params, x)
    padding = geometry["padding"]
    axis = dict(stride=geometry.get("strides", 1), input_dilation=1, kernel_dilation=1)
    axis["padding"] = padding[0] if isinstance(padding, list) else padding
    reads = axis_reads(6, size, **axis)
    assert y.shape == (2, len(reads), 4)
    for b in range(2):
        for n, (places, centre) in enumerate(zip(reads, seen, strict=True)):
            logits = (x[b, centre] @ params["attention"]["kernel"]).reshape(2, size).T
            inside = np.array([place is not None for place in places])
            if renorm:
                logits = np.where(inside[:, None], logits, -1e30)
            kernel = np.repeat(softmax(logits, 0), 2, axis=1)
            read = np.stack([np.zeros(4) if at is None else x[b, at] for at in places])
            want = (read * kernel).sum(0) + params["bias"]
            np.testing.assert_allclose(y[b, n], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [LightweightConv, SequenceDynamicConv])
def test_weights_are_dropped_with_the_rng_alone(make):
    layer = make(6, 5, heads=2, weight_dropout=0.4, use_bias=False)
    x = jnp.ones((3, 200, 6))
    variables = filled(layer, x)
    apply = jax.jit(layer.apply)
    rngs = {"dropout": jax.random.key(0)}
    kept = apply(variables, x)
    np.testing.assert_allclose(kept[:, 2:-2], 1, rtol=1e-5)  # weights sum to one
    dropped = apply(variables, x, rngs=rngs)
    assert not np.allclose(dropped, kept, atol=0.1)
    np.testing.assert_array_equal(dropped, apply(variables, x, rngs=rngs))
    forced = layer.copy(deterministic=True)
    np.testing.assert_array_equal(jax.jit(forced.apply)(variables, x, rngs=rngs), kept)
    if make is SequenceDynamicConv:  # enough weights for a mean
        np.testing.assert_allclose(dropped.mean(), kept.mean(), rtol=0.05)
    with pytest.raises(ValueError, match=r"weight_dropout=1.0 must be a share"):
        jax.eval_shape(layer.copy(weight_dropout=1.0).init, jax.random.key(0), x)


def test_without_softmax_the_numbers_are_the_weights():
    x = random_input(2, 7, 4)
    layer = LightweightConv(4, 3, heads=2, softmax=False, use_bias=False)
    kernel = random_input(3, 1, 2, seed=2)
    y = layer.apply({"params": {"kernel": kernel}}, x)
    weights = np.repeat(np.asarray(kernel)[:, 0], 2, axis=-1)
    padded = np.pad(x, [(0, 0), (1, 1), (0, 0)])
    want = sum(padded[:, t : t + 7] * weights[t] for t in range(3))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_heads_divide_the_features():
    x = jax.ShapeDtypeStruct((2, 7, 3), jnp.float32)
    for features, heads in ((16, 8), (6, 6), (10, 5), (7, 7), (11, 1)):
        params = init_shapes(LightweightConv(features, 3), x)["params"]
        assert params["kernel"].shape == (3, 1, heads)
    with pytest.raises(ValueError, match="heads=8 must divide the 12 features"):
        init_shapes(SequenceDynamicConv(12, 3, heads=8), x)


def test_initialisation_is_the_authors():
    x = jnp.ones((1, 3, 512))
    kernel = LightweightConv(512, 7, heads=8).init(jax.random.key(0), x)["params"]["kernel"]
    bound = np.sqrt(6 / (7 + 7 * 8))
    assert 0.8 * bound < np.abs(kernel).max() <= bound
    params = SequenceDynamicConv(512, 7, heads=8).init(jax.random.key(0), x)["params"]
    weights = params["attention"]["kernel"]
    assert 0.99 / np.sqrt(512) < np.abs(weights).max() <= 1 / np.sqrt(512)


def test_costs():
    """A product for the kernels of two heads at each position, and 3 taps of each output."""
    x = jax.ShapeDtypeStruct((2, 7, 4), jnp.float32)
    for make, attention in ((LightweightConv, 0), (SequenceDynamicConv, 4 * 6)):
        layer = make(4, 3, heads=2)
        macs = count_macs(layer.apply, init_shapes(layer, x), x)
        assert macs == 2 * 7 * (attention + 3 * 4)
