"""VGG-16 and MobileNetV2: published parameter counts, and what callers may vary."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import shapes_of as paths
from test_resnet import filled, shapes_of

from dyn.diagnostics import count_macs, count_parameters
from dyn.layers import CondConv, DCDConv, DCDDense, DynamicConv, ODConv
from dyn.models import VGG16, Classifier, MobileNetV2, ResNet18

DCD = {"conv": partial(DCDConv, pool=1), "dense": DCDDense}
SMALL = {
    "vgg16": partial(VGG16, num_classes=3, width=1),
    "mobilenet_v2": partial(MobileNetV2, num_classes=3, width=0.1),
    "hidden": partial(
        Classifier,
        num_classes=3,
        backbone=partial(ResNet18, num_classes=None, width=2, stage_sizes=(1,)),
        hidden=4,
    ),
}


def od_conv(num_kernels):
    return dict.fromkeys(("conv", "depthwise"), partial(ODConv, num_kernels=num_kernels))


@pytest.mark.parametrize(
    ("network", "fields", "num_classes", "parameters"),
    [
        (VGG16, {}, 1000, 138_357_544),
        (VGG16, {}, 17, 134_330_193),
        (VGG16, DCD, 17, 135_076_177),
        (ResNet18, {}, 17, 11_185_233),
        (ResNet18, {"conv": DCDConv, "dense": DCDDense}, 17, 14_136_141),
        (MobileNetV2, {}, 1000, 3_504_872),
        (MobileNetV2, od_conv(1), 1000, 4_940_185),
        (MobileNetV2, od_conv(4), 1000, 11_512_149),
        (MobileNetV2, {"width": 0.5, **od_conv(1)}, 1000, 2_425_537),
        (MobileNetV2, {"width": 0.5, **od_conv(4)}, 1000, 4_435_501),
    ],
)
def test_has_exactly_the_published_number_of_parameters(network, fields, num_classes, parameters):
    net = network(num_classes=num_classes, **fields)
    # The number does not depend on the size of the pictures; small ones are quicker to trace.
    assert count_parameters(shapes_of(net, 2, 32, 32, 3)["params"]) == parameters


def test_vgg_makes_all_convolutions_but_the_first_with_what_is_given():
    shapes = paths(shapes_of(VGG16(num_classes=17, **DCD), 2, 32, 32, 3)["params"])
    dynamic = {path.split("/")[0] for path in shapes if path.endswith("attention/latent/kernel")}
    assert dynamic - {"head"} == {path.split("/")[0] for path in shapes if "_conv" in path} - {
        "stem_conv"
    }
    assert len(dynamic - {"head"}) == 12 and "head" in dynamic
    assert {name: shapes[f"{name}/bias"] for name in ("stem_conv", "stage5_conv3")} == {
        "stem_conv": (64,),
        "stage5_conv3": (512,),
    }
    # The square root of the input features, rounded down.
    assert shapes["stage3_conv1/compress/kernel"] == (128, 11)


def test_macs_are_those_of_the_papers():
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    for net, macs in ((VGG16(num_classes=1000), 15.47e9), (MobileNetV2(num_classes=1000), 301e6)):
        variables = jax.eval_shape(net.init, jax.random.key(0), x)
        assert count_macs(net.apply, variables, x) == pytest.approx(macs, rel=0.005)


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 2), ("small", 8)])
@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2"])
def test_the_features_of_large_pictures_are_32_times_smaller_and_of_small_ones_8_times(
    name, stem, size
):
    net = SMALL[name](num_classes=None, stem=stem)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    features, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    # VGG's last max pooling is behind the features.
    assert features[-1].shape[1:3] == (size * (1 + (name == "vgg16")),) * 2
    assert len(features) == {"vgg16": 5, "mobilenet_v2": 8}[name]


@pytest.mark.parametrize("layer", [CondConv, DynamicConv, ODConv])
def test_mobilenet_takes_dynamic_depthwise_convolutions(layer):
    net = SMALL["mobilenet_v2"](conv=layer, depthwise=layer, stem="small")
    shapes = paths(shapes_of(net, 2, 8, 8, 1)["params"])
    assert len(shapes["stage2_block1/depthwise/kernel"]) == 5  # with an axis of candidates


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2"])
def test_a_series_is_a_picture_of_one_axis(name):
    net = SMALL[name](spatial_axes=1, stem="small")
    logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.ones((2, 64, 1)))
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2"])
def test_what_it_cannot_take_is_refused(name):
    with pytest.raises(ValueError, match="with spatial_axes=2; got shape"):
        shapes_of(SMALL[name](), 2, 64, 3)
    with pytest.raises(ValueError, match="write 'imagenet' or 'small'"):
        shapes_of(SMALL[name](stem="big"), 2, 64, 64, 3)


@pytest.mark.parametrize("name", SMALL)
def test_with_only_the_head_in_training_all_below_runs_as_in_inference(name):
    net = SMALL[name](dropout=0.0)
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 1)).astype(np.float32)
    variables = filled(jax.eval_shape(net.init, jax.random.key(0), x))
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
