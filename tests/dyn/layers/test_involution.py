"""Involution against a loop over positions, and against the authors' numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, sines
from numpy_oracle import convolve

from dyn.diagnostics import count_macs
from dyn.interop import warm_start
from dyn.layers import Conv, Involution


def make_published(taps, groups):
    """Returns variables for 32 channels, filled in the order of the authors' parameters."""
    squeeze = sines((8, 32), 0.3).T
    scale, bias = 1 + sines((8,), 0.4, 0.1), sines((8,), 0.5)
    kernel, kernel_bias = sines((groups * taps, 8), 0.6).T, sines((groups * taps,), 0.7)
    params = {
        "squeeze": {"kernel": squeeze},
        "norm": {"scale": scale, "bias": bias},
        "kernel": {"kernel": kernel, "bias": kernel_bias},
    }
    statistics = {"mean": sines((8,), 0.4, 0.1), "var": 1 + sines((8,), 0.5, 0.2)}
    return {
        "params": {"attention": params},
        "batch_stats": {"attention": {"norm": statistics}},
    }


@pytest.mark.parametrize(
    ("size", "strides", "sums", "entries"),
    [
        (
            7,
            1,
            (8.4398802049, 2530.6100271411),
            (1.30169187, 1.70839052, 0.92232451, -0.3963838, 1.44869406),
        ),
        (
            3,
            2,
            (0.9382882287, 670.9359341251),
            (-0.43804641, 0.47358595, 0.68779161, 1.71101117, 1.93598068),
        ),
    ],
)
def test_published_numbers(size, strides, sums, entries):
    layer = Involution(
        32,
        (size, size),
        strides,
        padding=size // 2,
        use_bias=False,
        attention_norm="batch",
        param_dtype=jnp.float64,
    )
    x = sines((2, 32, 6, 6), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    assert_published(layer, make_published(size**2, 2), x, sums, entries)


# Shape of the input, fields, and the inputs that each output averages along each axis.
CASES = {
    "strided": (
        (2, 5, 4, 4),
        dict(kernel_size=(3, 3), strides=2, padding=1),
        ([[0, 1], [2, 3], [4]], [[0, 1], [2, 3]]),
    ),
    "valid": ((2, 5, 4, 4), dict(kernel_size=(3, 2), padding="VALID"), ([1, 2, 3], [0, 1, 2])),
    "causal": (
        (2, 7, 4),
        dict(kernel_size=3, strides=2, padding="CAUSAL"),
        ([[0], [1, 2], [3, 4], [5, 6]],),
    ),
    "dilated, input dilated": (
        (2, 3, 4),
        dict(kernel_size=3, input_dilation=2, kernel_dilation=2, padding=[(2, 3)]),
        ([0, 0, 1, 1, 2, 2],),
    ),
    "all in the padding": (
        (2, 3, 4),
        dict(kernel_size=1, strides=2, padding=[(4, 0)]),
        ([[0], [0], [0, 1], [2]],),
    ),
}


def make_kernels(params, seen):
    """Computes the kernels `[T, G]` of a context vector."""
    z = seen @ params["squeeze"]["kernel"]
    z = (z - z.mean()) / np.sqrt(z.var() + 1e-5)
    z = np.maximum(z * params["norm"]["scale"] + params["norm"]["bias"], 0)
    return (z @ params["kernel"]["kernel"] + params["kernel"]["bias"]).reshape(2, -1).T


@pytest.mark.parametrize("name", CASES)
def test_each_position_makes_its_own_kernel(name):
    shape, fields, seen = CASES[name]
    layer = Involution(4, **fields, groups=2, param_dtype=jnp.float64)
    x = np.random.default_rng(1).standard_normal(shape)
    geometry = {k: v for k, v in fields.items() if k != "kernel_size"}
    size = fields["kernel_size"]
    size = (size,) if isinstance(size, int) else size
    with jax.enable_x64(True):
        variables = filled(layer, jnp.asarray(x), dtype=np.float64)
        y, state = jax.jit(partial(layer.apply, mutable=["intermediates"]))(variables, x)
    params = variables["params"]
    (weights,) = state["intermediates"]["attention"]["weights"]
    for position in np.ndindex(*y.shape[1:-1]):
        window = np.ix_(*[np.atleast_1d(axis[i]) for axis, i in zip(seen, position, strict=True)])
        for b in range(2):
            mean = x[b][window].mean(tuple(range(len(size))))
            kernels = make_kernels(params["attention"], mean)
            np.testing.assert_allclose(
                weights["position"][(b, *position)].reshape(-1, 2), kernels, rtol=0, atol=1e-12
            )
            # As the kernel of a depthwise convolution of the whole input, read at the position.
            kernel = np.repeat(kernels, 2, axis=-1).reshape(1, *size, 1, 4)
            want = convolve(x[b : b + 1], kernel, **geometry, feature_group_count=4)
            want = want[(0, *position)] + params["bias"]
            np.testing.assert_allclose(y[(b, *position)], want, rtol=0, atol=1e-12)


def test_groups_have_16_channels_or_more():
    x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    for features, groups in ((64, 4), (16, 1), (3, 1), (40, 2), (50, 2), (34, 2), (51, 3)):
        layer = Involution(features, (3, 3))
        _, state = jax.eval_shape(
            partial(layer.init_with_output, mutable=["params", "intermediates"]),
            jax.random.key(0),
            x,
        )
        (weights,) = state["intermediates"]["attention"]["weights"]
        assert weights["position"].shape == (1, 4, 4, 3, 3, groups)
    with pytest.raises(ValueError, match="groups=3 must divide the 64 features"):
        jax.eval_shape(Involution(64, (3, 3), groups=3).init, jax.random.key(0), x)


def test_another_number_of_features_is_projected_first():
    layer, x = Involution(6, (3, 3), strides=2, groups=3), random_input(2, 5, 4, 4)
    variables = filled(layer, x)
    projected = x @ variables["params"].pop("project")["kernel"][0, 0]
    want = jax.jit(layer.apply)(variables, projected, x)  # kernels are made from the inputs
    variables["params"]["project"] = filled(layer, x)["params"]["project"]
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), want, rtol=1e-4, atol=1e-5)


def test_does_not_start_from_a_convolution():
    x = random_input(2, 5, 4, 4)
    static, layer = Conv(4, (3, 3)), Involution(4, (3, 3))
    with pytest.raises(ValueError, match=r"kernel, of shape .* convolves each channel by itself"):
        warm_start(filled(layer, x), filled(static, x), noise=0)


def test_costs():
    """A projection, attention with 4 squeezed numbers and 2 groups of 9 taps, and 9 taps of each output."""
    layer, x = Involution(8, (3, 3), 2, groups=2), jax.ShapeDtypeStruct((2, 6, 4, 6), jnp.float32)
    macs = count_macs(layer.apply, init_shapes(layer, x), x)
    assert macs == 2 * 24 * 6 * 8 + 2 * 6 * (6 * 4 + 4 * 18 + 9 * 8)
