"""VGG-16, MobileNetV2, ConvNeXt and the classifier with a hidden layer, and what all backbones share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_learns, filled, init_shapes, random_input, shapes_of

from dyn.layers import DCDConv, DCDDense, ODConv
from dyn.models import (
    VGG,
    VGG16,
    BasicBlock,
    Classifier,
    ConvNeXt,
    DyMN,
    EfficientNetLite0,
    MobileNetV2,
    MobileNetV3,
    ResNet,
    mobilenet,
)

OneStage = partial(ResNet, (1,), BasicBlock, width=2)
SMALL = {
    "resnet": partial(OneStage, num_classes=3),
    "vgg": partial(VGG, stage_sizes=(1, 1), num_classes=3, width=1),
    "mobilenet": partial(MobileNetV2, num_classes=3, width=0.1),
    "convnext": partial(ConvNeXt, stage_sizes=(1, 1), num_classes=3, width=2),
    "classifier": partial(
        Classifier, num_classes=3, backbone=partial(OneStage, num_classes=None), hidden=4
    ),
}


@pytest.fixture
def few_stages(monkeypatch):
    stages = ((1, 16, 1, 1), (6, 24, 1, 2))  # the second with a single block
    monkeypatch.setattr(mobilenet, "STAGES", stages)


def picture(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_vgg_has_one_static_convolution():
    conv = partial(DCDConv, pool=1)
    net = VGG16(num_classes=17, conv=conv, dense=DCDDense)
    shapes = shapes_of(init_shapes(net, picture(2, 32, 32, 3))["params"])
    layers = {path.split("/")[0] for path in shapes if "_conv" in path}
    dynamic = {path.split("/")[0] for path in shapes if path.endswith("attention/latent/kernel")}
    assert dynamic == layers - {"stem_conv"} | {"head"}
    assert len(layers) == 13
    assert shapes["stem_conv/bias"] == (64,) and shapes["stage5_conv3/bias"] == (512,)
    # The square root of the input features, rounded down.
    assert shapes["stage3_conv1/compress/kernel"] == (128, 11)


def test_mobilenet_takes_dynamic_depthwise_convolutions(few_stages):
    conv = partial(ODConv, num_kernels=2)
    net = SMALL["mobilenet"](conv=conv, depthwise=conv, stem="small")
    shapes = shapes_of(init_shapes(net, picture(2, 8, 8, 1))["params"])
    assert shapes["stage2_block1/depthwise/kernel"] == (2, 3, 3, 1, 48)


def test_features_are_32_times_smaller_or_8_times_with_the_small_stem():
    networks = {
        "vgg": partial(VGG16, width=1),
        "mobilenet": partial(MobileNetV2, width=0.1),
        "convnext": partial(ConvNeXt, width=1, stage_sizes=(1, 1, 1, 1)),
    }
    for stem, size in (("imagenet", 2), ("small", 8)):
        for name, network in networks.items():
            net = network(num_classes=None, stem=stem)
            features, _ = jax.eval_shape(
                net.init_with_output, jax.random.key(0), picture(2, 64, 64, 3)
            )
            # VGG's last max pooling is after the features.
            assert features[-1].shape[1] == (2 * size if name == "vgg" else size)
            assert len(features) == {"vgg": 5, "mobilenet": 8, "convnext": 4}[name]


@pytest.mark.parametrize(
    ("network", "output_stride", "sizes"),
    [
        (MobileNetV2, 16, (32, 16, 8, 4, 4, 4, 4, 4)),
        (MobileNetV2, 8, (32, 16, 8, 8, 8, 8, 8, 8)),
        (MobileNetV3, 16, (32, 16, 8, 4, 4, 4, 4)),
        (EfficientNetLite0, 16, (32, 16, 8, 4, 4, 4, 4, 4)),
        (DyMN, 16, (32, 16, 8, 4, 4, 4, 4)),
    ],
)
def test_mobile_networks_dilate_instead_of_striding(network, output_stride, sizes):
    make = partial(network, width=0.25)
    x = picture(1, 64, 64, 3)
    net = make(num_classes=None, output_stride=output_stride)
    outputs, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert tuple(y.shape[1] for y in outputs) == sizes
    # Dilation changes no parameter: those of a trained classifier fit.
    classifier = shapes_of(init_shapes(make(num_classes=7), x)["params"])
    kept = {
        name: shape for name, shape in classifier.items() if not name.startswith(("head", "hidden"))
    }
    assert shapes_of(variables["params"]) == kept


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_a_dilated_mobile_network_agrees_with_the_strided_one(monkeypatch, stem):
    """At every fourth place, though not near the border: padding on the fine grid is another."""
    stages = ((1, 16, 1, 1), (6, 24, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2))
    monkeypatch.setattr(mobilenet, "STAGES", stages)
    x = random_input(1, 96, 96, 3)
    strided = MobileNetV2(num_classes=None, width=0.1, stem=stem)
    stride = 2 if stem == "imagenet" else 1
    dilated = strided.copy(output_stride=stride)
    variables = filled(strided, x)
    coarse, fine = jax.jit(lambda v: (strided.apply(v, x)[-1], dilated.apply(v, x)[-1]))(variables)
    assert fine.shape[1] == 4 * coarse.shape[1] == 96 // stride
    inner = slice(3, -3)
    np.testing.assert_allclose(
        fine[:, ::4, ::4][:, inner, inner], coarse[:, inner, inner], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["vgg", "mobilenet", "convnext"])
def test_takes_series_and_names_errors(name, few_stages):
    net = SMALL[name](spatial_axes=1, stem="small")
    logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), picture(2, 64, 1))
    assert logits.shape == (2, 3)
    with pytest.raises(ValueError, match="with spatial_axes=2; got shape"):
        init_shapes(SMALL[name](), picture(2, 64, 3))
    with pytest.raises(ValueError, match="write 'imagenet' or 'small'"):
        init_shapes(SMALL[name](stem="big"), picture(2, 64, 64, 3))


@pytest.mark.parametrize("name", SMALL)
def test_head_only_runs_all_below_the_head_as_in_inference(name, few_stages):
    net = SMALL[name](dropout=0.0)
    x = random_input(4, 32, 32, 1)
    variables = filled(net, x)
    training = {"train": True, "head_only": True, "mutable": ["batch_stats"]}

    @jax.jit
    def compute(variables):
        drops = net.clone(dropout=0.9)
        return (
            net.apply(variables, x),
            net.apply(variables, x, **training),
            drops.apply(variables, x, **training, rngs={"dropout": jax.random.key(1)})[0],
        )

    inference, (logits, changed), dropped = compute(variables)
    np.testing.assert_allclose(logits, inference, rtol=1e-5, atol=1e-6)
    assert not np.allclose(dropped, inference)
    jax.tree.map(np.testing.assert_array_equal, changed, {k: variables[k] for k in changed})


@pytest.mark.parametrize("name", ["vgg", "mobilenet"])
def test_gradient_reaches_all_parameters(name, few_stages):
    # Nothing but the input is random: positive numbers keep the ReLUs open.
    net, x = SMALL[name](dropout=0.0), random_input(4, 8, 8, 3)
    variables = jax.tree.map(np.abs, filled(net, x))

    @jax.jit
    @jax.grad
    def gradient(params):
        seen = {**variables, "params": params}
        return jnp.sum(jnp.sin(net.apply(seen, x, train=True, mutable=["batch_stats"])[0]))

    assert_learns(gradient(variables["params"]))


@pytest.mark.parametrize(
    "make", [partial(OneStage, stem="imagenet"), partial(MobileNetV2, width=0.25)]
)
def test_an_output_stride_below_that_of_the_stem_is_an_error(make):
    for output_stride in (0, 1):
        net = make(num_classes=None, output_stride=output_stride)
        with pytest.raises(ValueError, match=f"output_stride={output_stride} is below"):
            jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
