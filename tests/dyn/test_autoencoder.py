"""The autoencoder: its shapes and parameters as published, and what a layer sees of the next."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dyn.layers import DynamicConv
from dyn.models import Autoencoder
from dyn.ops import max_pool

SMALL = {"widths": (4, 8, 8, 6)}


def shapes_of(net, shape=(1, 128, 128, 3)):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    code, switches = jax.eval_shape(partial(net.apply, method="encode"), variables, x)
    return variables, code.shape, [s.shape for s in switches]


def kernels(variables):
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {name: leaf.shape for name, leaf in flat.items() if name.endswith("kernel")}


def test_the_implicit_network_is_the_published_one():
    variables, code, switches = shapes_of(Autoencoder())
    assert code == (1, 8, 8, 6) and np.prod(code) == 384 and switches == []
    assert kernels(variables) == {
        "encoder/conv1/kernel": (4, 4, 3, 64),
        "encoder/conv2/kernel": (4, 4, 64, 128),
        "encoder/conv3/kernel": (4, 4, 128, 256),
        "encoder/conv4/kernel": (4, 4, 256, 6),
        "decoder/conv4/kernel": (4, 4, 6, 256),
        "decoder/conv3/kernel": (4, 4, 256, 128),
        "decoder/conv2/kernel": (4, 4, 128, 64),
        "decoder/conv1/kernel": (4, 4, 64, 3),
    }


def test_the_explicit_network_is_the_published_one():
    variables, code, switches = shapes_of(Autoencoder(pooling="explicit"))
    assert code == (1, 8, 8, 6)
    assert switches == [(1, 64, 64, 64), (1, 32, 32, 128), (1, 16, 16, 256), (1, 8, 8, 6)]
    assert kernels(variables) == {
        "encoder/conv1/kernel": (3, 3, 3, 64),
        "encoder/conv2/kernel": (3, 3, 64, 128),
        "encoder/conv3/kernel": (3, 3, 128, 256),
        "encoder/conv4/kernel": (3, 3, 256, 6),
        "decoder/conv4/kernel": (3, 3, 6, 256),
        "decoder/conv3/kernel": (3, 3, 256, 128),
        "decoder/conv2/kernel": (3, 3, 128, 64),
        "decoder/conv1/kernel": (3, 3, 64, 3),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"pooling": "implicit"},
        {"pooling": "explicit"},
        {"pooling": "explicit", "window": 2, "code_activation": "none", "norm": False},
    ],
)
def test_it_learns_a_batch_by_heart(rng, fields):
    net = Autoencoder(widths=(4, 6), **fields)
    x = jnp.asarray(rng.uniform(size=(2, 8, 8, 1)), jnp.float32)
    variables = jax.jit(net.init)(jax.random.key(0), x)

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
    for _ in range(40):
        value, y, params, stats = step(params, stats)
        values.append(float(value))
    assert y.shape == x.shape and 0 <= float(y.min()) and float(y.max()) <= 1
    assert values[-1] < values[10] < values[0]


def test_the_code_is_signed_only_where_that_is_asked_for(rng):
    x = jnp.asarray(rng.uniform(size=(2, 4, 4, 3)), jnp.float32)
    lowest = {}
    for activation in ("relu", "none"):
        net = Autoencoder(widths=(4, 6), code_activation=activation)
        variables = jax.jit(net.init)(jax.random.key(0), x)
        lowest[activation] = net.apply(variables, x, method="encode")[0].min()
    assert lowest["relu"] == 0 and lowest["none"] < 0


def test_decoding_what_was_encoded_is_the_whole(rng):
    net = Autoencoder(**SMALL, pooling="explicit")
    x = jnp.asarray(rng.uniform(size=(2, 32, 16, 3)), jnp.float32)
    variables = jax.jit(net.init)(jax.random.key(0), x)

    @jax.jit
    def both(variables, x):
        code, switches = net.apply(variables, x, method="encode")
        return code, switches, net.apply(variables, code, switches, method="decode")

    code, switches, y = both(variables, x)
    np.testing.assert_allclose(y, jax.jit(net.apply)(variables, x), rtol=1e-5)
    # The switches of the last level are places of the level above it.
    assert code.shape == (2, 2, 1, 6) and int(switches[-1].max()) < 4 * 2


def test_the_encoder_takes_a_dynamic_convolution_and_the_decoder_stays_static():
    net = Autoencoder(**SMALL, conv=partial(DynamicConv, num_kernels=2))
    variables, code, _ = shapes_of(net, (1, 32, 32, 3))
    assert code == (1, 2, 2, 6)
    assert kernels(variables)["encoder/conv2/kernel"] == (2, 4, 4, 4, 8)
    assert kernels(variables)["decoder/conv2/kernel"] == (4, 4, 8, 4)
    assert set(variables["attention"]) == {"encoder"}


def test_series_have_codes_too():
    _, code, switches = shapes_of(Autoencoder(**SMALL, pooling="explicit"), (1, 64, 2))
    assert code == (1, 4, 6) and switches[0] == (1, 32, 4)


def test_pooling_by_the_first_level_is_max_pool(rng):
    """Which values go on does not depend on whether their places are asked for."""
    net = Autoencoder(widths=(4,), pooling="explicit", norm=False, code_activation="none")
    x = jnp.asarray(rng.uniform(size=(1, 8, 8, 2)), jnp.float32)
    variables = net.init(jax.random.key(1), x)
    kernel = variables["params"]["encoder"]["conv1"]["kernel"]
    seen = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    code, _ = net.apply(variables, x, method="encode")
    np.testing.assert_allclose(code, max_pool(seen, (4, 4), 2, 1), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_said():
    x = jnp.ones((1, 20, 16, 3))
    with pytest.raises(ValueError, match="multiples of 16"):
        Autoencoder(**SMALL).init(jax.random.key(0), x)
    for fields in ({"pooling": "max"}, {"window": 3}, {"code_activation": "tanh"}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Autoencoder(**SMALL, **fields).init(jax.random.key(0), x[:, :16])
    net = Autoencoder(**SMALL, pooling="explicit")
    variables = jax.eval_shape(net.init, jax.random.key(0), x[:, :16])
    with pytest.raises(ValueError, match="decodes with 4"):
        jax.eval_shape(lambda v: net.apply(v, jnp.ones((1, 1, 1, 6)), method="decode"), variables)
