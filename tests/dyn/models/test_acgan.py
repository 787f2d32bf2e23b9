"""The GAN's two networks: their published sizes, their shapes, and the effects of labels and norms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_learns, filled, init_shapes, random_input

from dyn import layers
from dyn.diagnostics import count_parameters, layer_outputs
from dyn.models import ACGAN

SMALL = dict(num_classes=3, latent=8, widths=(16, 8, 8, 4))


def picture(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def sizes_of(net):
    params = init_shapes(net, picture(2, 16, 16, 1))["params"]
    return {name: count_parameters(params[name]) for name in ("generator", "discriminator")}


@pytest.fixture(scope="module")
def small():
    net = ACGAN(**SMALL, dropout=0.5)
    return net, filled(net, picture(2, 16, 16, 1)), random_input(2, 16, 16, 1)


def test_has_the_published_parameters_and_shapes():
    """Those of the published tables for 17 classes at 256 pixels."""
    net = ACGAN(num_classes=17)
    variables = init_shapes(net, picture(1, 256, 256, 3))
    assert count_parameters(variables["params"]["generator"]) == 13_730_793
    assert count_parameters(variables["params"]["discriminator"]) == 2_456_754
    shapes = layer_outputs(net, variables, picture(16, 256, 256, 3))
    assert shapes["generator/label"] == (16, 100)
    assert shapes["generator/linear"] == (16, 128 * 32 * 32)
    stages = [(16, 32, 32, 128), (16, 64, 64, 64), (16, 128, 128, 32), (16, 256, 256, 16)]
    assert [shapes[f"generator/stage{n}_block1"] for n in (1, 2, 3, 4)] == stages
    assert shapes["generator/attention"] == (16, 256, 256, 16)
    assert shapes["generator"] == (16, 256, 256, 3)
    assert [shapes[f"discriminator/conv{n}"] for n in (4, 3, 2, 1)] == stages
    assert shapes["discriminator/real"] == (16, 1)
    assert shapes["discriminator/label"] == (16, 17)


def test_sizes_that_do_not_fit_are_refused():
    for size in ((128, 201), (4, 8)):
        with pytest.raises(ValueError, match="multiples of 8"):
            init_shapes(ACGAN(**SMALL), picture(1, *size, 1))
    with pytest.raises(ValueError, match="4 numbers"):
        init_shapes(ACGAN(num_classes=3, widths=(8, 4)), picture(1, 16, 16, 1))


def test_pictures_of_any_multiple_of_8():
    variables = init_shapes(ACGAN(**SMALL), picture(2, 48, 80, 2))
    outputs = jax.eval_shape(ACGAN(**SMALL).apply, variables, picture(5, 48, 80, 2))
    assert [y.shape for y in outputs] == [(5, 48, 80, 2), (5,), (5, 3)]


def test_every_discriminator_layer_is_divided_by_its_norm(small):
    net, variables, pictures = small
    mutable = ["batch_stats", "intermediates"]
    discriminate = partial(net.apply, method="discriminate", mutable=mutable)
    state = jax.eval_shape(discriminate, variables, pictures)[1]
    layers_with_norm = state["intermediates"]["discriminator"]
    assert layers_with_norm.keys() == variables["params"]["discriminator"].keys()
    assert all("sigma" in sown for sown in layers_with_norm.values()) and len(layers_with_norm) == 6


def test_generator_depends_on_noise_and_label_and_stays_within_one(small):
    net, variables, _ = small
    noise, labels = random_input(2, 8), jnp.array([0, 1])
    generate = jax.jit(partial(net.apply, method="generate"), static_argnums=3)
    one = generate(variables, noise, labels, (16, 16, 1))
    assert np.abs(one).max() <= 1
    assert np.abs(one - generate(variables, noise, labels[::-1], (16, 16, 1))).max() > 1e-6
    assert (
        np.abs(one[0] - generate(variables, noise[::-1], labels * 0, (16, 16, 1))[0]).max() > 1e-6
    )


def test_discriminator_drops_in_training_only_and_has_gradients(small):
    net, variables, pictures = small

    discriminate = partial(net.apply, method="discriminate")

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params, key):
        seen = {**variables, "params": params}
        real, label = discriminate(seen, pictures, train=True, rngs={"dropout": key})
        return jnp.sum(real) + jnp.sum(label**2), real

    keys = [jax.random.key(seed) for seed in (1, 2)]
    (grads, one), (_, other) = (gradient(variables["params"], key) for key in keys)
    assert not np.allclose(one, other)
    assert_learns(grads["discriminator"])
    jax.eval_shape(discriminate, variables, pictures)  # inference needs no rng


def test_only_the_generator_takes_dynamic_convolutions():
    static = sizes_of(ACGAN(**SMALL))
    dynamic = sizes_of(ACGAN(**SMALL, conv=partial(layers.ODConv, num_kernels=2)))
    assert dynamic["generator"] > static["generator"]
    assert dynamic["discriminator"] == static["discriminator"]
    net = layers.share_kernels(lambda conv: ACGAN(**SMALL, conv=conv), picture(1, 32, 32, 3))
    assert "conv" in init_shapes(net, picture(1, 16, 16, 1))["params"]


def test_dense_layer_is_divided_by_its_largest_singular_value():
    layer, x = layers.SpectralNormDense(5), random_input(4, 7)
    variables = filled(layer, x)
    apply = jax.jit(partial(layer.apply, mutable=["batch_stats"]))
    for _ in range(80):
        y, state = apply(variables, x)
        variables |= state
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    sigma = np.linalg.svd(kernel, compute_uv=False)[0]
    expected = np.asarray(x) @ kernel / sigma + variables["params"]["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
