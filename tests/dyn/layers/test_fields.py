"""Fields and contexts of a wrong kind end in one sentence."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import CONVOLUTIONS, LAYERS

from dyn import layers, models

NETWORKS = {
    "ResNet": partial(models.ResNet18, num_classes=3),
    "MobileNetV2": partial(models.MobileNetV2, num_classes=3),
    "EfficientNet": partial(models.EfficientNetB0, num_classes=3),
    "DyMN": partial(models.DyMN, num_classes=3),
    "ConvNeXt": partial(models.ConvNeXt, num_classes=3),
    "VGG": partial(models.VGG16, num_classes=3),
    "SeriesNet": partial(models.Net1, num_classes=3),
    "Autoencoder": models.Autoencoder,
    "ACGAN": partial(models.ACGAN, num_classes=3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_field_of_a_wrong_kind_is_named_with_what_to_write(name):
    make = CONVOLUTIONS[name].make
    for fields, message in (
        (
            dict(features="8"),
            r"features='8' must be a whole number: write features=8, without quot",
        ),
        (dict(features=8.0), r"features=8.0 must be a whole number"),
        (dict(kernel_size="3"), r"kernel_size='3' must be a whole number or whole numbers"),
        (dict(kernel_size=("3", 3)), r"kernel_size=\('3', 3\)"),
        (dict(strides="2"), r"strides='2' .* or None: write strides=2"),
        (dict(feature_group_count=None), r"feature_group_count=None must be"),
        (dict(use_bias="no"), r"use_bias='no' must be True or False"),
        (dict(kernel_init="he"), r"kernel_init='he' must be a function"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**{"features": 6, "kernel_size": (3, 3), **fields})


@pytest.mark.parametrize("name", LAYERS)
def test_every_number_of_a_layer_is_checked(name):
    layer = LAYERS[name].layer()
    checked = []
    for field, value in vars(layer).items():
        if type(value) in (int, float) and not field.startswith("_"):
            with pytest.raises(ValueError, match=f"{field}='x' must be"):
                layer.copy(**{field: "x"})
            checked.append(field)
    assert checked


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_says_how_its_layers_are_named(name):
    for conv in ("odconv", layers.ODConv(8, (3, 3))):
        with pytest.raises(
            ValueError, match=r"conv=.* write for example conv=.*\(ODConv, num_kern"
        ):
            NETWORKS[name](conv=conv)
    with pytest.raises(TypeError, match="has no field convs: did you mean conv"):
        NETWORKS[name](convs=layers.ODConv)


def test_a_field_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match="ODConv has no field num_kernel: did you mean num_kernels"):
        layers.ODConv(8, (3, 3), num_kernel=4)
    with pytest.raises(
        TypeError, match=r"no field context: pass an array .* layer\(x, context=c\)"
    ):
        layers.ODConv(8, (3, 3), context="block")


@pytest.mark.parametrize("name", [name for name, case in LAYERS.items() if case.looks_at])
def test_a_context_that_is_no_array_is_refused(name):
    case = LAYERS[name]
    with pytest.raises(ValueError, match=r"context='block' must be an array"):
        jax.eval_shape(
            partial(case.layer().init, context="block"), jax.random.key(0), jnp.ones(case.shape)
        )


def test_what_nn_conv_takes_is_taken():
    """Numbers of numpy, lists, and masks that are lists."""
    x = jax.ShapeDtypeStruct((2, 5, 5, 3), jnp.float32)
    for make in (nn.Conv, layers.ODConv):
        layer = make(np.int64(4), [3, np.int32(3)], strides=[1, 1], use_bias=np.bool_(True))
        assert jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape == (2, 5, 5, 4)
    masked = layers.ODConv(1, (1,), mask=[[[0.0]]], use_bias=False)
    y = jax.jit(masked.init_with_output)(jax.random.key(0), jnp.ones((2, 4, 1)))[0]
    assert not y.any()


def test_a_layer_whose_annotations_cannot_be_read_is_not_checked():
    """With `from __future__ import annotations` and a name that only a function knows."""

    class OwnConv(layers.ODConv):
        mine: "Local" = 3  # noqa: F821

    assert OwnConv(8, (3, 3), mine="x").mine == "x"
    with pytest.raises(TypeError, match="did you mean mine"):
        OwnConv(8, (3, 3), miner="x")
