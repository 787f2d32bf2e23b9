"""CBAM against published numbers and an independent computation, with both norms of its spatial gate."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from layer_cases import random_input, sines
from layer_cases import shapes_of as paths

from dyn.diagnostics import count_parameters
from dyn.layers.cbam import CBAM
from dyn.models import BasicBlock, ResNet18


def shapes_of(layer, *args):
    # flax's own norms cannot compute statistics in float64 under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        return jax.eval_shape(layer.init, jax.random.key(0), *args)


def filled(layer, *args, dtype=np.float32):
    """Variables with a random number everywhere: nothing is zero or one by initialisation."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        values = rng.standard_normal(leaf.shape)
        return np.asarray(1 + np.abs(values) if path[-1].key == "var" else values, dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(layer, *args))


# Parity with the authors' code, through numbers published with the formulas: all arrays are sines.


def test_published_parity_vector():
    x = sines((2, 32, 6, 6), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    variables = {
        "params": {
            "channel": {
                "reduce": {"kernel": sines((2, 32), 0.3, 0.3).T, "bias": sines((2,), 0.6, 0.3)},
                "expand": {"kernel": sines((32, 2), 0.9, 0.3).T, "bias": sines((32,), 1.2, 0.3)},
            },
            "spatial": {
                "conv": {"kernel": sines((1, 2, 7, 7), 1.5, 0.3).transpose(2, 3, 1, 0)},
                "norm": {"scale": 1 + sines((1,), 1.8, 0.1), "bias": sines((1,), 2.1, 0.3)},
            },
        },
        "batch_stats": {"spatial": {"norm": {"mean": np.array([0.05]), "var": np.array([1.2])}}},
    }
    layer = CBAM(param_dtype=jnp.float64)
    with jax.enable_x64(True):
        variables, x = jax.tree.map(jnp.asarray, (variables, x))
        assert paths(variables) == paths(shapes_of(layer, x))
        y = np.asarray(jax.jit(layer.apply)(variables, x))
    assert y.dtype == np.float64
    y = y.transpose(0, 3, 1, 2).ravel()
    sums = (2.3107395134, 368.5169362188)
    np.testing.assert_allclose((y.sum(), np.abs(y).sum()), sums, rtol=0, atol=1e-10)
    entries = (0.01585515, 0.07797857, 0.12263786, 0.16428686, 0.2343967)
    np.testing.assert_allclose((*y[:4], y[-1]), entries, rtol=0, atol=6e-9)


# The formulas, once more and with nothing shared with the library.


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def cbam_by_numpy(variables, x, norm, statistics):
    """(output, channel weights, spatial weights)."""
    params = jax.tree.map(np.asarray, variables["params"])
    space = tuple(range(1, x.ndim - 1))
    reduce, expand = params["channel"]["reduce"], params["channel"]["expand"]

    def perceptron(v):
        z = np.maximum(v @ reduce["kernel"] + reduce["bias"], 0)
        return z @ expand["kernel"] + expand["bias"]

    channel = sigmoid(perceptron(x.mean(space)) + perceptron(x.max(space)))
    u = x * channel.reshape(len(x), *(1,) * len(space), -1)

    kernel = params["spatial"]["conv"]["kernel"]
    size, shape = kernel.shape[:-2], x.shape[1:-1]
    maps = np.stack([u.max(-1), u.mean(-1)], -1)
    padded = np.pad(maps, [(0, 0), *((k // 2, k // 2) for k in size), (0, 0)])
    z = np.zeros(x.shape[:-1])
    for tap in itertools.product(*map(range, size)):
        at = tuple(slice(t, t + n) for t, n in zip(tap, shape, strict=True))
        z += padded[(slice(None), *at)] @ kernel[tap][:, 0]
    if norm == "batch":
        if statistics == "batch":
            mean, var = z.mean(), z.var()
        else:
            running = variables["batch_stats"]["spatial"]["norm"]
            mean, var = running["mean"], running["var"]
        scale = params["spatial"]["norm"]
        z = (z - mean) / np.sqrt(var + 1e-5) * scale["scale"] + scale["bias"]
    return u * sigmoid(z)[..., None], channel, sigmoid(z)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("spatial", [(9,), (5, 4), (3, 4, 2)])
def test_follows_the_formulas(spatial, norm):
    fields = dict(reduction=1 / 4, kernel_size=3, spatial_norm=norm)
    layer = CBAM(**fields, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, *spatial, 8, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    want, channel, places = cbam_by_numpy(variables, np.asarray(x), norm, "running")
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)
    (sown,) = state["intermediates"]["weights"]
    np.testing.assert_allclose(sown["channel"], channel, rtol=1e-10)
    np.testing.assert_allclose(sown["spatial"], places, rtol=1e-10)


def test_uses_and_updates_batch_statistics_exactly_when_they_are_mutable():
    x = random_input(3, 5, 4, 8)
    layer = CBAM(kernel_size=3)
    variables = filled(layer, x)
    y, state = jax.jit(partial(layer.apply, mutable=["batch_stats"]))(variables, x)
    want, channel, _ = cbam_by_numpy(variables, np.asarray(x), "batch", "batch")
    np.testing.assert_allclose(y, want, rtol=1e-3, atol=1e-4)
    # A hundredth of the way to the batch's mean: torch's momentum 0.01.
    u = np.asarray(x) * channel[:, None, None]
    maps = jnp.asarray(np.stack([u.max(-1), u.mean(-1)], -1), jnp.float32)
    kernel = {"params": {"kernel": variables["params"]["spatial"]["conv"]["kernel"]}}
    mean = nn.Conv(1, (3, 3), use_bias=False).apply(kernel, maps).mean()
    before, after = (v["batch_stats"]["spatial"]["norm"]["mean"] for v in (variables, state))
    np.testing.assert_allclose(after, 0.99 * before + 0.01 * mean, rtol=1e-4)

    frozen = CBAM(kernel_size=3, use_running_average=True)
    y, state = jax.jit(partial(frozen.apply, mutable=["batch_stats"]))(variables, x)
    want, _, _ = cbam_by_numpy(variables, np.asarray(x), "batch", "running")
    np.testing.assert_allclose(y, want, rtol=1e-3, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_every_place_is_weighed_one_half_at_the_start():
    x = random_input(3, 5, 4, 32)
    layer = CBAM()
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    _, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    (sown,) = state["intermediates"]["weights"]
    np.testing.assert_array_equal(sown["spatial"], np.full((3, 5, 4), 0.5))
    assert np.ptp(sown["channel"]) > 0


def test_batch_axes_where_the_number_of_spatial_axes_is_given():
    x = random_input(2, 3, 9, 4, 8)
    layer = CBAM(spatial_axes=2, kernel_size=3)
    variables = filled(layer, x)
    apply = jax.jit(layer.apply)
    want = apply(variables, x.reshape(6, 9, 4, 8)).reshape(x.shape)
    np.testing.assert_allclose(apply(variables, x), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(variables, x[0, 0]), want[0, 0], rtol=1e-4, atol=1e-5)


# Parameters.


@pytest.mark.parametrize(("norm", "more"), [("batch", 2), ("none", 0)])
def test_parameters(norm, more):
    x = jax.ShapeDtypeStruct((2, 9, 9, 64), jnp.float32)
    variables = shapes_of(CBAM(spatial_norm=norm), x)
    want = {
        "channel/reduce/kernel": (64, 4),
        "channel/reduce/bias": (4,),
        "channel/expand/kernel": (4, 64),
        "channel/expand/bias": (64,),
        "spatial/conv/kernel": (7, 7, 2, 1),
    }
    if norm == "batch":
        want |= {"spatial/norm/scale": (1,), "spatial/norm/bias": (1,)}
    assert paths(variables["params"]) == want
    assert ("batch_stats" in variables) == (norm == "batch")
    assert count_parameters(variables["params"]) == 2 * 64 * 4 + 4 + 64 + 98 + more


def attended_block(norm, **fields):
    """The basic block, its last norm followed by attention."""

    def then_attention(name):
        if name != "norm2":
            return norm(name=name)
        return nn.Sequential([norm(name=name), CBAM(name="attention")])

    return BasicBlock(norm=then_attention, **fields)


def test_resnet18_has_exactly_the_published_number_of_parameters():
    """11,779,392: 2 C^2 / 16 + C / 16 + C + 7 * 7 * 2 + 2 for each of two blocks of four widths."""
    net = ResNet18(num_classes=1000, block=attended_block)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    per_block = sum(2 * c * c // 16 + c // 16 + c + 98 + 2 for c in (64, 128, 256, 512))
    assert count_parameters(shapes_of(net, x)["params"]) == 11_689_512 + 2 * per_block == 11_779_392


# Gradients, dtypes and errors.


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_gradients_by_finite_differences(norm):
    layer = CBAM(reduction=1 / 2, kernel_size=3, spatial_norm=norm, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        # Distinct numbers, so that no maximum is shared.
        x = random_input(2, 3, 2, 4, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        statistics = {k: v for k, v in variables.items() if k != "params"}
        # Far from the kink of ReLU, where finite differences are wrong.
        variables["params"]["channel"]["reduce"]["bias"] = np.asarray([5.0, -5.0])

        @jax.jit
        def function(params, x):
            return layer.apply({"params": params, **statistics}, x)

        args = (variables["params"], x)
        check_grads(function, args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(norm):
    x = random_input(4, 5, 5, 8)
    layer = CBAM(reduction=1 / 2, spatial_norm=norm)
    variables = filled(layer, x)

    @jax.jit
    def gradient(params, x):
        def loss(params):
            return jnp.sum(
                layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0] ** 2
            )

        return jax.grad(loss)(params)

    for path, g in jax.tree_util.tree_leaves_with_path(gradient(variables["params"], x)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)
    # Blank pictures have no variance for the norm to divide by.
    for g in jax.tree.leaves(gradient(variables["params"], jnp.zeros_like(x))):
        assert np.isfinite(g).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_keeps_the_dtype_and_weighs_in_float32(dtype):
    x = random_input(2, 5, 5, 8).astype(dtype)
    layer = CBAM()
    apply = jax.jit(partial(layer.apply, mutable=["intermediates", "batch_stats"]))
    y, state = apply(filled(layer, x), x)
    assert y.dtype == dtype and y.shape == x.shape
    assert {w.dtype for w in jax.tree.leaves(state["intermediates"])} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("layer", "shape", "dtype", "message"),
    [
        (CBAM(), (2, 5, 5, 8), int, "CBAM weighs its input, which must be floating point"),
        (CBAM(), (2, 8), float, "at least one spatial axis"),
        (CBAM(spatial_norm="layer"), (2, 5, 8), float, "write 'batch' or 'none'"),
    ],
)
def test_errors_say_what_to_do(layer, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(layer, jnp.ones(shape, dtype))


def test_batch_statistics_of_one_place_are_refused():
    x = random_input(1, 1, 1, 8)
    variables = filled(CBAM(), x)
    with pytest.raises(ValueError, match="one vector of a batch of size 1"):
        CBAM().apply(variables, x, mutable=["batch_stats"])
    jax.jit(CBAM().apply)(variables, x)
    jax.jit(partial(CBAM(use_running_average=True).apply, mutable=["batch_stats"]))(variables, x)
