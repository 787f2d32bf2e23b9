"""The autoencoder: its published shapes and parameters, pooling and unpooling, and learning."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of

from dyn.layers import DynamicConv
from dyn.models import Autoencoder
from dyn.ops import max_pool

SMALL = {"widths": (4, 8, 8, 6)}


def traced(net, shape=(1, 128, 128, 3)):
    """Shapes of the parameters, of the code, and of the switches."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = init_shapes(net, x)
    code, switches = jax.eval_shape(partial(net.apply, method="encode"), variables, x)
    return shapes_of(variables["params"]), code.shape, [s.shape for s in switches]


@pytest.mark.parametrize(
    ("pooling", "size", "expected_switches"),
    [
        ("implicit", 4, []),
        ("explicit", 3, [(1, 64, 64, 64), (1, 32, 32, 128), (1, 16, 16, 256), (1, 8, 8, 6)]),
    ],
)
def test_default_network_is_the_published_one(pooling, size, expected_switches):
    shapes, code, switches = traced(Autoencoder(pooling=pooling))
    assert code == (1, 8, 8, 6) and np.prod(code) == 384 and switches == expected_switches
    widths = (3, 64, 128, 256, 6)
    expected = {}
    for level in range(1, 5):
        lower, upper = widths[level - 1 : level + 1]
        expected[f"encoder/conv{level}/kernel"] = (size, size, lower, upper)
        expected[f"decoder/conv{level}/kernel"] = (size, size, upper, lower)
    assert {path: shape for path, shape in shapes.items() if path.endswith("kernel")} == expected


@pytest.mark.matrix
@pytest.mark.parametrize(
    "fields",
    [
        {"pooling": "explicit"},
        {"pooling": "implicit", "code_activation": "none", "norm": False},
    ],
)
def test_learns_a_batch_by_heart(rng, fields):
    net = Autoencoder(widths=(4, 6), **fields)
    x = jnp.asarray(rng.uniform(size=(2, 8, 8, 1)), jnp.float32)
    variables = filled(net, x)

    @jax.jit
    def step(params, batch_stats):
        def loss(params):
            seen = {"params": params, "batch_stats": batch_stats}
            y, changed = net.apply(seen, x, train=True, mutable=["batch_stats"])
            return jnp.mean((y - x) ** 2), (y, changed.get("batch_stats", {}))

        (value, (y, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, y, jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), stats

    params, stats = variables["params"], variables.get("batch_stats", {})
    values = []
    for _ in range(20):
        value, y, params, stats = step(params, stats)
        values.append(float(value))
    assert y.shape == x.shape and 0 <= float(y.min()) and float(y.max()) <= 1
    assert values[-1] < values[5] < values[0]


def test_only_a_code_without_activation_is_signed():
    net, x = Autoencoder(widths=(4, 6)), random_input(2, 4, 4, 3)
    signed = net.copy(code_activation="none")
    variables = filled(net, x)
    encode = jax.jit(lambda net, v: net.apply(v, x, method="encode")[0], static_argnums=0)
    assert encode(net, variables).min() == 0 and encode(signed, variables).min() < 0


def test_decoding_the_code_is_the_whole_network():
    net = Autoencoder(widths=(4, 6), pooling="explicit", window=2)
    x = random_input(2, 8, 4, 3)

    @jax.jit
    def compute(variables):
        code, switches = net.apply(variables, x, method="encode")
        decoded = net.apply(variables, code, switches, method="decode")
        return code, switches, decoded, net.apply(variables, x)

    code, switches, decoded, y = compute(filled(net, x))
    np.testing.assert_allclose(decoded, y, rtol=1e-5)
    # The switches of the last level are positions in the level before it.
    assert code.shape == (2, 2, 1, 6) and int(switches[-1].max()) < 4 * 2


def test_only_the_encoder_is_dynamic():
    shapes, code, _ = traced(
        Autoencoder(**SMALL, conv=partial(DynamicConv, num_kernels=2)), (1, 32, 32, 3)
    )
    assert code == (1, 2, 2, 6)
    assert shapes["encoder/conv2/kernel"] == (2, 4, 4, 4, 8)
    assert shapes["decoder/conv2/kernel"] == (4, 4, 8, 4)
    attended = {path.split("/")[0] for path in shapes if "/attention/" in path}
    assert attended == {"encoder"}


def test_takes_series():
    _, code, switches = traced(Autoencoder(**SMALL, pooling="explicit"), (1, 64, 2))
    assert code == (1, 4, 6) and switches[0] == (1, 32, 4)


def test_pooling_of_the_first_level_is_max_pool():
    net = Autoencoder(widths=(4,), pooling="explicit", norm=False, code_activation="none")
    x = random_input(1, 8, 8, 2)
    variables = filled(net, x)

    @jax.jit
    def compute(variables):
        conv = variables["params"]["encoder"]["conv1"]
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, conv["kernel"], (1, 1), [(1, 1)] * 2, dimension_numbers=dimensions
        )
        expected = max_pool(y + conv["bias"], (4, 4), 2, 1)
        return net.apply(variables, x, method="encode")[0], expected

    np.testing.assert_allclose(*compute(variables), rtol=1e-5, atol=1e-6)


def test_errors_name_the_field():
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    with pytest.raises(ValueError, match="multiples of 16"):
        init_shapes(Autoencoder(**SMALL), jax.ShapeDtypeStruct((1, 20, 16, 3), jnp.float32))
    for fields in ({"pooling": "max"}, {"window": 3}, {"code_activation": "tanh"}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            init_shapes(Autoencoder(**SMALL, **fields), x)
    net = Autoencoder(**SMALL, pooling="explicit")
    with pytest.raises(ValueError, match="4 switches"):
        jax.eval_shape(
            lambda v: net.apply(v, jnp.ones((1, 1, 1, 6)), method="decode"), init_shapes(net, x)
        )
