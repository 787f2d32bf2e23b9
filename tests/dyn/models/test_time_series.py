"""Net1 and Net2: their layers, the context of their attention, and training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import assert_learns, filled, init_shapes, random_input, shapes_of

from dyn.layers import DynamicConv, ODConv
from dyn.models import Net1, Net2

Small = {"num_classes": 3, "features": 4, "kernel_size": 5}


def relu_and_pool(x, width):
    kept = x.shape[1] // width * width
    return np.maximum(x, 0)[:, :kept].reshape(x.shape[0], -1, width, x.shape[2]).max(2)


@pytest.mark.parametrize(("network", "convolutions", "hidden"), [(Net1, 1, 0), (Net2, 2, 6)])
def test_agrees_with_a_computation_in_loops(network, convolutions, hidden):
    net = network(**Small, pool=3, hidden=hidden)
    x = random_input(2, 29, 2)
    variables = filled(net, x)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables["params"])

    y = np.asarray(x, np.float64)
    for layer in range(1, convolutions + 1):
        conv = params[f"conv{layer}"]
        y = relu_and_pool(numpy_oracle.convolve(y, conv["kernel"][None]) + conv["bias"], 3)
    y = y.reshape(2, -1)
    if hidden:
        y = np.maximum(y @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    y = y @ params["head"]["kernel"] + params["head"]["bias"]

    assert len(shapes_of(params)) == 2 * (convolutions + (2 if hidden else 1))
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), y, rtol=1e-5, atol=1e-5)


def test_sizes_for_adiac():
    x = jax.ShapeDtypeStruct((2, 176, 1), jnp.float32)
    assert shapes_of(init_shapes(Net2(num_classes=37), x)["params"]) == {
        "conv1/kernel": (9, 1, 64),
        "conv1/bias": (64,),
        "conv2/kernel": (9, 64, 64),
        "conv2/bias": (64,),
        "head/kernel": (44 * 64, 37),
        "head/bias": (37,),
    }


def test_context_series_is_the_means_of_parts_of_the_input():
    """Series with equal means in each part have equal attention, others have not."""
    conv = partial(ODConv, num_kernels=2)
    net = Net2(**Small, conv=conv, context="series", bins=3)
    rng = np.random.default_rng(0)
    series = rng.standard_normal((1, 12, 1)).astype(np.float32)
    permuted = series.reshape(1, 3, 4, 1)[:, :, rng.permutation(4)].reshape(1, 12, 1)
    variables = filled(net, series)
    apply = jax.jit(lambda x: net.apply(variables, x, mutable=["intermediates"])[1])
    first, same, different = (jax.tree.leaves(apply(x)) for x in (series, permuted, series + 1))
    assert len(first) == len(same) > 1
    for a, b, c in zip(first, same, different, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
        assert not np.allclose(a, c)
    squeezed = [s for p, s in shapes_of(variables["params"]).items() if "squeeze/kernel" in p]
    assert all(shape[0] == 3 for shape in squeezed)


def test_attention_ignores_normalised_series_without_that_context():
    x = random_input(4, 24, 1)
    x = x - x.mean(1, keepdims=True)

    def spread(context):
        net = Net1(**Small, conv=partial(DynamicConv, num_kernels=2), context=context, bins=4)
        apply = jax.jit(partial(net.apply, mutable=["intermediates"]))
        _, state = apply(filled(net, x), x)
        return np.ptp(state["intermediates"]["conv1"]["attention"]["weights"][0]["kernel"], axis=0)

    assert spread("input").max() < 1e-6
    assert spread("series").min() > 1e-2


def test_a_norm_replaces_the_bias():
    x = jax.ShapeDtypeStruct((4, 21, 2), jnp.float32)
    for norm in (False, True):
        variables = init_shapes(Net2(**Small, conv=ODConv, norm=norm), x)
        assert ("norm2" in variables.get("batch_stats", {})) == norm
        assert ("bias" in variables["params"]["conv2"]) != norm


def test_trains_with_norms_and_dropout():
    net = Net2(**Small, conv=partial(ODConv, num_kernels=2), norm=True, dropout=0.5)
    x = random_input(4, 21, 2)
    variables = filled(net, x)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params, key):
        rngs, mutable = {"dropout": key}, ["batch_stats"]
        seen = {**variables, "params": params}
        logits, state = net.apply(seen, x, train=True, rngs=rngs, mutable=mutable)
        return jnp.sum(logits**2), (logits, state["batch_stats"])

    grads, (logits, statistics) = gradient(variables["params"], jax.random.key(1))
    assert_learns(grads)
    assert (statistics["norm2"]["mean"] != variables["batch_stats"]["norm2"]["mean"]).any()
    assert not np.allclose(logits, gradient(variables["params"], jax.random.key(2))[1][0])
    jax.eval_shape(net.apply, variables, x)  # inference needs no rng


def test_computes_in_bfloat16_with_parameters_in_float32():
    conv = partial(DynamicConv, num_kernels=2)
    net = Net2(**Small, conv=conv, dtype=jnp.bfloat16, context="series")
    x = jax.ShapeDtypeStruct((2, 20, 1), jnp.float32)
    logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (20, 1), r"series \[B, L, C\]; got shape \(20, 1\)"),
        ({"pool": 5}, (2, 24, 1), "24 samples are too short"),
        ({"context": "block"}, (2, 20, 1), "write 'input' or 'series'"),
        ({"context": "series", "bins": 21}, (2, 20, 1), "bins must be from 1 to 20"),
    ],
)
def test_errors_name_what_is_right(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        init_shapes(Net2(**Small, **fields), jax.ShapeDtypeStruct(shape, jnp.float32))
