"""DynamicReLU against published numbers and an independent computation."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_published, filled, init_shapes, random_input, sines

from dyn.diagnostics import count_macs
from dyn.layers import DynamicReLU
from dyn.models import BasicBlock, ResNet


@pytest.mark.parametrize(
    ("form", "outputs", "sums", "last"),
    [
        ("A", 4, (142.2492488901, 672.0421922416), 0.82258356),
        ("B", 64, (380.6042482361, 530.1276060431), 0.77702274),
    ],
)
def test_published_parity_vectors(form, outputs, sums, last):
    x = sines((2, 16, 6, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
    params = {
        "reduce": {"kernel": sines((4, 16), 0.3, 1.5).T, "bias": sines((4,), 0.4)},
        "coefficients": {
            "kernel": sines((outputs, 4), 0.5, 1.5).T,
            "bias": sines((outputs,), 0.6),
        },
    }
    layer = DynamicReLU(form, reduction=1 / 4, param_dtype=jnp.float64)
    entries = (0.15977772, 0.43027877, 0.68338795, 0.9057747, last)
    assert_published(layer, {"params": params}, x, sums, entries)


def by_numpy(variables, x, form, pieces, context):
    params = jax.tree.map(np.asarray, variables["params"])
    y = np.zeros_like(x)
    for b in range(len(x)):
        z = context[b] @ params["reduce"]["kernel"] + params["reduce"]["bias"]
        head = params["coefficients"]
        logits = np.maximum(z, 0) @ head["kernel"] + head["bias"]
        theta = (2 / (1 + np.exp(-logits)) - 1).reshape(-1, 2 * pieces)
        for place in np.ndindex(*x.shape[1:]):
            own = theta[0 if form == "A" else place[-1]]
            values = [
                ((m == 0) + own[m]) * x[(b, *place)] + 0.5 * own[pieces + m] for m in range(pieces)
            ]
            y[(b, *place)] = max(values)
        if form == "C":
            shares = np.exp(x[b] @ params["spatial"]["kernel"][:, 0] / 10)
            shares *= shares.size / 3 / shares.sum()
            y[b] *= np.minimum(shares, 1)[..., None]
    return y


@pytest.mark.parametrize(
    ("form", "pieces", "spatial"), [("A", 3, (4,)), ("B", 2, (3, 2)), ("C", 2, (2, 3, 2))]
)
def test_follows_the_formulas(form, pieces, spatial):
    layer = DynamicReLU(form, pieces, min_squeeze=3, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = random_input(2, *spatial, 6, dtype=np.float64)
        context = random_input(2, 5, seed=2, dtype=np.float64)
        variables = filled(layer, x, context, dtype=np.float64, scale=2.0)
        y = jax.jit(layer.apply)(variables, x, context)
    want = by_numpy(variables, np.asarray(x), form, pieces, np.asarray(context))
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["A", "B"])
def test_without_a_theta_it_is_relu(form):
    layer, x = DynamicReLU(form), random_input(2, 4, 3, 8)
    variables = jax.tree.map(np.zeros_like, filled(layer, x))
    np.testing.assert_array_equal(jax.jit(layer.apply)(variables, x), nn.relu(x))


def test_it_stands_for_the_relus_of_a_resnet():
    net = ResNet((1, 1), BasicBlock, num_classes=3, width=8, stem="small", activation=DynamicReLU)
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = init_shapes(net, x)
    block = variables["params"]["stage2_block1"]
    assert {"relu1", "relu2"} < set(block)
    layer = DynamicReLU()
    features = jax.ShapeDtypeStruct((2, 4, 4, 16), jnp.float32)
    assert count_macs(layer.apply, init_shapes(layer, features), features) == 2 * (16 * 2 + 2 * 64)
    static = count_macs(net.copy(activation=None).apply, variables, x)
    relus = 2 * 2 * (8 * 1 + 1 * 32) + 2 * 2 * (16 * 2 + 2 * 64)
    assert count_macs(net.apply, variables, x) == static + relus


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'A', 'B' or 'C'"):
        jax.eval_shape(partial(DynamicReLU("D").init, jax.random.key(0)), jnp.ones((2, 5, 8)))
