"""Net1 and Net2: their layers by hand, what attention looks at, and what callers may vary."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input, shapes_of

from dyn.layers import CondConv, DynamicConv, GatedConv, ODConv, PixelDynamicConv
from dyn.models import Net1, Net2

Small = {"num_classes": 3, "features": 4, "kernel_size": 5}


def convolve(x, kernel, bias):
    """A convolution with as many outputs as inputs, in loops."""
    size = kernel.shape[0]
    padded = np.pad(x, [(0, 0), ((size - 1) // 2, size - 1 - (size - 1) // 2), (0, 0)])
    y = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for position in range(x.shape[1]):
        for tap in range(size):
            y[:, position] += padded[:, position + tap] @ kernel[tap]
    return y + bias


def relu_and_pool(x, width):
    kept = x.shape[1] // width * width
    return np.maximum(x, 0)[:, :kept].reshape(x.shape[0], -1, width, x.shape[2]).max(2)


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize(("network", "convolutions"), [(Net1, 1), (Net2, 2)])
def test_is_convolution_relu_pooling_and_fully_connected_by_hand(network, convolutions, hidden):
    net = network(**Small, pool=3, hidden=hidden)
    x = random_input(2, 29, 2)
    variables = filled(net, x)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables["params"])

    y = np.asarray(x, np.float64)
    for layer in range(1, convolutions + 1):
        y = relu_and_pool(convolve(y, **params[f"conv{layer}"]), 3)
    y = y.reshape(2, -1)
    if hidden:
        y = np.maximum(y @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    y = y @ params["head"]["kernel"] + params["head"]["bias"]

    assert len(shapes_of(params)) == 2 * (convolutions + (2 if hidden else 1))
    np.testing.assert_allclose(net.apply(variables, x), y, rtol=1e-5, atol=1e-5)


def test_the_sizes_for_adiac():
    shapes = shapes_of(
        jax.eval_shape(
            Net2(num_classes=37).init,
            jax.random.key(0),
            jax.ShapeDtypeStruct((2, 176, 1), "float32"),
        )["params"]
    )
    assert shapes == {
        "conv1/kernel": (9, 1, 64),
        "conv1/bias": (64,),
        "conv2/kernel": (9, 64, 64),
        "conv2/bias": (64,),
        "head/kernel": (44 * 64, 37),
        "head/bias": (37,),
    }


@pytest.mark.parametrize("conv", [DynamicConv, ODConv, CondConv, GatedConv])
def test_the_context_series_is_the_mean_of_each_part_for_all_convolutions(conv):
    """Two series with equal means in each part have equal attention; the layer's own context differs."""
    net = Net2(**Small, conv=partial(conv, num_kernels=2), context="series", bins=3)
    rng = np.random.default_rng(0)
    one = rng.standard_normal((1, 12, 1)).astype(np.float32)
    other = one.reshape(1, 3, 4, 1)[:, :, rng.permutation(4)].reshape(1, 12, 1)
    variables = filled(net, one)
    seen = []
    for x in (one, other, one + 1):
        _, state = net.apply(variables, x, mutable=["intermediates"])
        seen.append(jax.tree.leaves(state["intermediates"]))
    same, different = seen[1:]
    assert len(seen[0]) == len(same) > 1
    for a, b in zip(seen[0], same, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    if conv is not GatedConv:  # whose gates may stay as they are
        assert not any(np.allclose(a, b) for a, b in zip(seen[0], different, strict=True))
    squeezed = [s for p, s in shapes_of(variables["params"]).items() if "squeeze/kernel" in p]
    assert all(shape[0] == 3 for shape in squeezed)


def test_attention_is_blind_to_normalised_series_unless_it_is_shown_their_outline():
    x = random_input(4, 24, 1)
    x = x - x.mean(1, keepdims=True)

    def spread(context):
        net = Net1(**Small, conv=partial(DynamicConv, num_kernels=2), context=context, bins=4)
        _, state = net.apply(filled(net, x), x, mutable=["intermediates"])
        return np.ptp(state["intermediates"]["conv1"]["attention"]["weights"][0]["kernel"], axis=0)

    assert spread("input").max() < 1e-6
    assert spread("series").min() > 1e-2


@pytest.mark.parametrize("conv", [nn.Conv, DynamicConv, ODConv, PixelDynamicConv])
@pytest.mark.parametrize("norm", [False, True])
def test_trains_with_any_layer_with_and_without_norms(conv, norm):
    net = Net2(**Small, conv=conv, norm=norm, dropout=0.5)
    x = jax.ShapeDtypeStruct((4, 21, 2), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    apply = partial(
        net.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
    )
    logits, changed = jax.eval_shape(apply, variables, x)
    assert logits.shape == (4, 3)
    # A norm takes the bias's place.
    assert ("norm2" in changed.get("batch_stats", {})) == norm
    assert ("bias" in variables["params"]["conv2"]) != norm


def test_drops_in_training_only():
    net = Net1(**Small, dropout=0.5)
    x = random_input(2, 20, 1)
    variables = filled(net, x)
    train = partial(net.apply, variables, x, train=True)
    one = train(rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(one, train(rngs={"dropout": jax.random.key(2)}))
    np.testing.assert_array_equal(net.apply(variables, x), net.apply(variables, x))


def test_computes_in_the_dtype_it_is_given_and_keeps_parameters_in_float32():
    net = Net2(
        **Small, conv=partial(DynamicConv, num_kernels=2), dtype=jnp.bfloat16, context="series"
    )
    x = jax.ShapeDtypeStruct((2, 20, 1), jnp.float32)
    logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (20, 1), r"series \[B, L, C\]; got shape \(20, 1\)"),
        ({"pool": 5}, (2, 24, 1), r"24 samples are too short for 2 max pooling\(s\) of 5"),
        ({"context": "block"}, (2, 20, 1), "'block' is unknown: write 'input' or 'series'"),
        ({"context": "series", "bins": 21}, (2, 20, 1), "bins=21 must be from 1 to 20"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_what_can(fields, shape, message):
    net = Net2(**Small, **fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
