"""CBAM against published numbers and an independent computation, with both norms of its spatial gate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, shapes_of, sines

from dyn.diagnostics import count_parameters
from dyn.layers.attention import reduce_max
from dyn.layers.cbam import CBAM
from dyn.ops.platforms import plan_for_platform

# Parity with the authors' code, by numbers published with the formulas: all arrays are sines.


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
    sums = (2.3107395134, 368.5169362188)
    entries = (0.01585515, 0.07797857, 0.12263786, 0.16428686, 0.2343967)
    assert_published(layer, variables, x, sums, entries)


# The formulas in numpy.


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def cbam_by_numpy(variables, x, norm):
    """Returns `(output, channel weights, spatial weights)`."""
    params = jax.tree.map(np.asarray, variables["params"])
    space = tuple(range(1, x.ndim - 1))
    reduce, expand = params["channel"]["reduce"], params["channel"]["expand"]

    def perceptron(v):
        z = np.maximum(v @ reduce["kernel"] + reduce["bias"], 0)
        return z @ expand["kernel"] + expand["bias"]

    channel = sigmoid(perceptron(x.mean(space)) + perceptron(x.max(space)))
    u = x * channel.reshape(len(x), *(1,) * len(space), -1)

    kernel = params["spatial"]["conv"]["kernel"]
    maps = np.stack([u.max(-1), u.mean(-1)], -1)
    z = numpy_oracle.convolve(maps, kernel[None])[..., 0]
    if norm == "batch":
        running, own = variables["batch_stats"]["spatial"]["norm"], params["spatial"]["norm"]
        z = (z - running["mean"]) / np.sqrt(running["var"] + 1e-5) * own["scale"] + own["bias"]
    return u * sigmoid(z)[..., None], channel, sigmoid(z)


@pytest.mark.parametrize(("spatial", "norm"), [((9,), "batch"), ((3, 4, 2), "none")])
def test_follows_the_formulas(spatial, norm):
    fields = dict(reduction=1 / 4, kernel_size=3, spatial_norm=norm)
    layer = CBAM(**fields, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(3, *spatial, 8, dtype=np.float64)
        variables = filled(layer, x, dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    want, channel, places = cbam_by_numpy(variables, np.asarray(x), norm)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)
    (sown,) = state["intermediates"]["weights"]
    np.testing.assert_allclose(sown["channel"], channel, rtol=1e-10)
    np.testing.assert_allclose(sown["spatial"], places, rtol=1e-10)


@pytest.mark.matrix
def test_training_uses_and_updates_the_statistics_of_the_batch():
    x = random_input(3, 5, 4, 8)
    layer = CBAM(kernel_size=3)
    variables = filled(layer, x)
    mutable = ["batch_stats", "intermediates"]
    y, state = jax.jit(partial(layer.apply, mutable=mutable))(variables, x)
    (sown,) = state["intermediates"]["weights"]
    u = np.asarray(x * sown["channel"][:, None, None])
    kernel = variables["params"]["spatial"]["conv"]["kernel"]
    z = numpy_oracle.convolve(np.stack([u.max(-1), u.mean(-1)], -1), kernel[None])
    batch = {"mean": z.mean((0, 1, 2)), "var": z.var((0, 1, 2))}
    known = {**variables, "batch_stats": {"spatial": {"norm": jax.tree.map(np.float32, batch)}}}
    np.testing.assert_allclose(y, layer.apply(known, x), rtol=1e-3, atol=1e-4)
    before, after = (v["batch_stats"]["spatial"]["norm"]["mean"] for v in (variables, state))
    # A hundredth of the way to the batch's mean: torch's momentum 0.01.
    np.testing.assert_allclose(after, 0.99 * before + 0.01 * batch["mean"], rtol=1e-4)


def test_every_position_is_weighed_one_half_at_the_start():
    x = random_input(3, 5, 4, 32)
    layer = CBAM()
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    _, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    (sown,) = state["intermediates"]["weights"]
    np.testing.assert_array_equal(sown["spatial"], np.full((3, 5, 4), 0.5))
    assert np.ptp(sown["channel"]) > 0


@pytest.mark.parametrize(("spatial", "size"), [((7,), 3), ((6, 5), 7), ((3, 4, 5), 3)])
def test_rows_for_tpus_are_the_same_convolution(spatial, size):
    layer, x = CBAM(kernel_size=size), random_input(2, *spatial, 8)
    variables = filled(layer, x)
    want = jax.jit(layer.apply)(variables, x)
    with plan_for_platform("tpu"):
        got = jax.jit(lambda v, x: layer.apply(v, x))(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# Parameters.


@pytest.mark.parametrize(("norm", "more"), [("batch", 2), ("none", 0)])
def test_parameters(norm, more):
    x = jax.ShapeDtypeStruct((2, 9, 9, 64), jnp.float32)
    variables = init_shapes(CBAM(spatial_norm=norm), x)
    want = {
        "channel/reduce/kernel": (64, 4),
        "channel/reduce/bias": (4,),
        "channel/expand/kernel": (4, 64),
        "channel/expand/bias": (64,),
        "spatial/conv/kernel": (7, 7, 2, 1),
    }
    if norm == "batch":
        want |= {"spatial/norm/scale": (1,), "spatial/norm/bias": (1,)}
    assert shapes_of(variables["params"]) == want
    assert ("batch_stats" in variables) == (norm == "batch")
    assert count_parameters(variables["params"]) == 2 * 64 * 4 + 4 + 64 + 98 + more


# Errors and gradients.


def test_batch_statistics_of_one_position_are_refused():
    x = random_input(1, 1, 1, 8)
    variables = filled(CBAM(), x)
    with pytest.raises(ValueError, match="batch of size 1"):
        CBAM().apply(variables, x, mutable=["batch_stats"])
    jax.jit(CBAM().apply)(variables, x)
    jax.jit(partial(CBAM(use_running_average=True).apply, mutable=["batch_stats"]))(variables, x)


def test_reduce_max_has_its_gradient_at_the_first_maximum():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 3, 4, 5)), jnp.float32)
    for axes in (-1, (1, 2), (1, 2, 3)):
        np.testing.assert_array_equal(reduce_max(x, axes), jnp.max(x, axes))
        gradient = np.asarray(jax.grad(lambda x, axes=axes: reduce_max(x, axes).sum())(x))
        assert (gradient.sum(axes) == 1).all() and set(np.unique(gradient)) == {0, 1}
        np.testing.assert_array_equal((gradient * x).sum(axes), jnp.max(x, axes))


def test_reduce_max_keeps_nan_infinities_and_second_derivatives():
    x = jnp.array([[1.0, jnp.nan, 3.0], [-jnp.inf, -jnp.inf, -jnp.inf], [2.0, 5.0, 5.0]])
    np.testing.assert_array_equal(reduce_max(x, -1), jnp.max(x, -1))
    hessian = jax.hessian(lambda x: reduce_max(x, -1) ** 2)(x[2])
    np.testing.assert_array_equal(hessian, np.diag([0.0, 2.0, 0.0]))
