"""The GAN's two networks: their published sizes, their shapes, and what a label and a norm do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn import layers
from dyn.diagnostics import count_parameters, layer_outputs
from dyn.models import ACGAN

SMALL = dict(num_classes=3, latent=8, widths=(16, 8, 8, 4))


def shapes_of(net, *shape):
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), example)


@pytest.fixture(scope="module")
def small():
    net = ACGAN(**SMALL)
    return net, jax.jit(net.init)(jax.random.key(0), jnp.zeros((2, 16, 16, 1)))


def test_the_parameters_of_the_published_networks_for_17_classes():
    params = shapes_of(ACGAN(num_classes=17), 2, 256, 256, 3)["params"]
    assert count_parameters(params["generator"]) == 13_730_793
    assert count_parameters(params["discriminator"]) == 2_456_754


def test_the_shapes_of_the_published_tables_at_256_pixels():
    net = ACGAN(num_classes=17)
    example = jax.ShapeDtypeStruct((16, 256, 256, 3), jnp.float32)
    found = layer_outputs(net, shapes_of(net, 1, 256, 256, 3), example)
    assert found["generator/label"] == (16, 100)
    assert found["generator/linear"] == (16, 128 * 32 * 32)
    stages = [(16, 32, 32, 128), (16, 64, 64, 64), (16, 128, 128, 32), (16, 256, 256, 16)]
    assert [found[f"generator/stage{n}_block1"] for n in (1, 2, 3, 4)] == stages
    assert found["generator/attention"] == (16, 256, 256, 16)
    assert found["generator"] == (16, 256, 256, 3)
    assert [found[f"discriminator/conv{n}"] for n in (4, 3, 2, 1)] == stages
    assert found["discriminator/real"] == (16, 1)
    assert found["discriminator/label"] == (16, 17)


@pytest.mark.parametrize("size", [(32, 32, 1), (64, 64, 3), (128, 128, 3), (48, 80, 2)])
def test_pictures_have_the_size_and_the_channels_that_are_asked_for(size):
    net = ACGAN(**SMALL)
    variables = shapes_of(net, 2, *size)
    pictures, real, label = jax.eval_shape(
        net.apply, variables, jax.ShapeDtypeStruct((5, *size), jnp.float32)
    )
    assert (pictures.shape, real.shape, label.shape) == ((5, *size), (5,), (5, 3))


def test_a_size_that_cannot_be_halved_three_times_is_refused():
    for size in ((128, 201, 1), (4, 8, 1)):
        with pytest.raises(ValueError, match="multiples of 8"):
            shapes_of(ACGAN(**SMALL), 1, *size)


def test_other_than_four_widths_are_refused():
    with pytest.raises(ValueError, match="give 4 numbers of features"):
        shapes_of(ACGAN(num_classes=3, widths=(8, 4)), 1, 16, 16, 1)


def test_every_layer_of_the_discriminator_has_spectral_norm_one(small):
    net, variables = small
    pictures = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))

    @jax.jit
    def step(variables):
        _, changed = net.apply(
            variables, pictures, True, method="discriminate", mutable=["batch_stats"]
        )
        return {**variables, **changed}

    before = variables["batch_stats"]
    assert len(jax.tree.leaves(before["discriminator"])) == 6
    for _ in range(60):
        variables = step(variables)
    # The generator's statistics are not the discriminator's to change.
    jax.tree.map(
        np.testing.assert_array_equal, variables["batch_stats"]["generator"], before["generator"]
    )
    _, seen = net.apply(variables, pictures, method="discriminate", mutable=["intermediates"])
    for name, layer in variables["params"]["discriminator"].items():
        matrix = np.asarray(layer["kernel"], np.float64).reshape(-1, layer["kernel"].shape[-1])
        want = np.linalg.svd(matrix, compute_uv=False)[0]
        sigma = seen["intermediates"]["discriminator"][name]["sigma"][0]
        np.testing.assert_allclose(sigma, [want], rtol=1e-3, err_msg=name)


def test_a_dense_of_spectral_norm_one_is_the_matrix_over_its_largest_singular_value():
    layer = layers.SpectralNormDense(5, n_steps=80)
    x = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x)
    variables["params"]["bias"] += 0.5
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    want = x @ kernel / np.linalg.svd(kernel, compute_uv=False)[0] + 0.5
    np.testing.assert_allclose(layer.apply(variables, x), want, rtol=1e-4, atol=1e-5)


def test_a_picture_depends_on_its_noise_and_on_its_label_and_lies_within_one(small):
    net, variables = small
    noise = jax.random.normal(jax.random.key(3), (2, 8))
    make = jax.jit(partial(net.apply, method="generate"), static_argnums=3)
    labels = jnp.array([0, 1])
    one, other = (
        make(variables, noise, labels, (16, 16, 1)),
        make(variables, noise, labels[::-1], (16, 16, 1)),
    )
    assert np.abs(one).max() < 1 and np.abs(one - other).max() > 1e-6
    assert np.abs(one[0] - make(variables, noise[::-1], labels * 0, (16, 16, 1))[0]).max() > 1e-6


def test_dropout_of_the_discriminator_drops_in_training_alone(small):
    _, variables = small
    net = ACGAN(**SMALL, dropout=0.5)
    pictures = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
    plain, _ = net.apply(variables, pictures, method="discriminate")
    again, _ = net.apply(variables, pictures, method="discriminate")
    dropped, _ = net.apply(
        variables, pictures, True, method="discriminate", rngs={"dropout": jax.random.key(2)}
    )
    np.testing.assert_array_equal(plain, again)
    assert np.abs(plain - dropped).max() > 1e-4


@pytest.mark.parametrize(
    "conv", [partial(layers.ODConv, num_kernels=2), layers.DCDConv, layers.CondConv]
)
def test_the_residual_blocks_of_the_generator_take_any_layer(conv):
    dynamic, static = (
        shapes_of(ACGAN(**SMALL, conv=conv), 1, 16, 16, 1),
        shapes_of(ACGAN(**SMALL), 1, 16, 16, 1),
    )
    sizes = [
        {name: count_parameters(v["params"][name]) for name in ("generator", "discriminator")}
        for v in (dynamic, static)
    ]
    assert sizes[0]["generator"] != sizes[1]["generator"]
    assert sizes[0]["discriminator"] == sizes[1]["discriminator"]


def test_kernels_of_the_residual_blocks_can_be_shared():
    example = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    net = layers.share_kernels(lambda conv: ACGAN(**SMALL, conv=conv), example)
    assert "conv" in shapes_of(net, 1, 16, 16, 1)["params"]
