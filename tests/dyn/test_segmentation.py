"""Segmentation heads: parameters, shapes and rates on backbones of all strides, and errors."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from layer_cases import init_shapes, shapes_of

from dyn.diagnostics import count_parameters
from dyn.layers import ODConv
from dyn.models import FCN, BasicBlock, DeepLabV3Plus, ResNet, ResNet18, ResNet50
from dyn.models.segmentation import downsampling

Features = partial(ResNet18, num_classes=None)
TinyFeatures = partial(ResNet, (1, 1), BasicBlock, num_classes=None, width=4, stem="small")
OneStage = partial(ResNet, (1,), BasicBlock, num_classes=None, width=4)
HEADS = [FCN, partial(DeepLabV3Plus, features=16)]
BOTH = pytest.mark.parametrize("head", HEADS, ids=["FCN", "DeepLabV3Plus"])


# Parameters


def parameters_of(net, size=32):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((2, size, size, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    return shapes["params"]


RESNET18, RESNET50 = 11_689_512 - 513_000, 25_557_032 - 2_049_000  # without classifiers


def fcn_head(inputs, classes):
    hidden = inputs // 4
    return 9 * inputs * hidden + 2 * hidden + hidden * classes + classes


def separable(inputs, outputs):
    """A 3x3 kernel for each feature, a matrix, and scale and bias of the norm behind each."""
    return 9 * inputs + 2 * inputs + inputs * outputs + 2 * outputs


def deeplab_head(inputs, first, classes, features=256, few=48):
    point = inputs * features + 2 * features
    pyramid = 2 * point + 3 * separable(inputs, features) + 5 * features**2 + 2 * features
    low = first * few + 2 * few
    decoder = separable(features + few, features) + separable(features, features)
    return pyramid + low + decoder + features * classes + classes


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    ("head", "network", "backbone", "own"),
    [
        (FCN, ResNet18, RESNET18, fcn_head(512, 21)),
        (FCN, ResNet50, RESNET50, fcn_head(2048, 21)),
        (DeepLabV3Plus, ResNet18, RESNET18, deeplab_head(512, 64, 21)),
        (DeepLabV3Plus, ResNet50, RESNET50, deeplab_head(2048, 256, 21)),
    ],
)
def test_has_the_parameters_of_the_formula_at_every_stride(
    head, network, backbone, own, output_stride
):
    net = head(backbone=partial(network, num_classes=None, output_stride=output_stride))
    params = parameters_of(net)
    assert count_parameters(params["backbone"]) == backbone
    assert count_parameters(params) == backbone + own


def test_an_fcn_on_resnet50_has_the_published_number_without_its_auxiliary_head():
    """torchvision's fcn_resnet50 has 35,322,218, a second such head on the third stage among them."""
    assert RESNET50 + fcn_head(2048, 21) + fcn_head(1024, 21) == 35_322_218


def test_a_smaller_pyramid_keeps_the_share_of_the_first_stage():
    net = DeepLabV3Plus(num_classes=5, backbone=partial(Features, width=8), features=32)
    params = parameters_of(net)
    assert params["low_level"]["conv"]["kernel"].shape == (1, 1, 8, 6)
    del params["backbone"]
    assert count_parameters(params) == deeplab_head(64, 8, 5, features=32, few=6)


def test_names_of_parameters_do_not_depend_on_stride_or_convolution():
    static, dynamic = (
        shapes_of(parameters_of(DeepLabV3Plus(backbone=partial(Features, **fields))))
        for fields in ({"output_stride": 16}, {"output_stride": 8, "conv": ODConv})
    )

    def outside(shapes):
        return {path: shape for path, shape in shapes.items() if not path.startswith("backbone")}

    assert outside(static) == outside(dynamic)
    assert {path.rsplit("/", 2)[0] for path in outside(static) if path.endswith("conv/kernel")} == {
        "low_level",
        *(f"aspp/{name}" for name in ("point", "pooled", "project")),
        *(
            f"{name}/{part}"
            for name in ("aspp/atrous1", "aspp/atrous2", "aspp/atrous3", "decoder1", "decoder2")
            for part in ("depthwise", "pointwise")
        ),
    }


def test_only_the_backbone_is_dynamic():
    backbone = partial(Features, conv=partial(ODConv, num_kernels=2))
    for head in (FCN, DeepLabV3Plus):
        attended = {
            path.split("/")[0]
            for path in shapes_of(parameters_of(head(backbone=backbone)))
            if "/attention/" in path
        }
        assert attended == {"backbone"}


# Shapes


@BOTH
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("output_stride", [None, 8, 16])
@pytest.mark.parametrize("size", [(64, 64), (33, 50), (7, 5)])
def test_every_pixel_of_pictures_of_any_size_has_logits(head, stem, output_stride, size):
    backbone = partial(
        ResNet,
        (1, 1, 1, 1),
        BasicBlock,
        num_classes=None,
        width=8,
        stem=stem,
        output_stride=output_stride,
    )
    net = head(num_classes=4, backbone=backbone)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert logits.shape == (2, *size, 4) and logits.dtype == jnp.float32


@pytest.mark.parametrize("halvings", range(6))
def test_the_stride_is_found_from_the_sizes(halvings):
    for size in range(1, 100):
        reduced = size
        for _ in range(halvings):
            reduced = (reduced + 1) // 2
        for other in (1, size):  # the other axis of the picture says nothing, or the same
            found = downsampling((size, other), (reduced, 1 if other == 1 else reduced))
            if reduced > 1:
                assert found == 2**halvings
            else:  # several strides give one feature: any dilation reaches only padding
                assert found <= 2**halvings and math.ceil(size / found) == 1


def rates_of(net, size):
    """Dilations of the convolutions of each feature by itself, where there are any."""
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(net.apply)(jax.eval_shape(net.init, jax.random.key(0), x), x)
    convolutions = [e.params for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    depthwise = [p["rhs_dilation"] for p in convolutions if p["feature_group_count"] > 1]
    assert len(depthwise) == 5 and depthwise[3:] == [(1, 1), (1, 1)]  # pyramid, and decoder
    assert all(a == b for a, b in depthwise)
    return [a for a, _ in depthwise[:3]]


@pytest.mark.parametrize(
    ("stem", "output_stride", "rates"),
    [
        ("imagenet", 16, [6, 12, 18]),
        ("imagenet", 8, [12, 24, 36]),
        ("imagenet", None, [3, 6, 9]),
        ("small", None, [12, 24, 36]),
        ("small", 4, [24, 48, 72]),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (97, 39), (9, 65)])
def test_rates_are_as_wide_in_pixels_at_every_stride(stem, output_stride, rates, size):
    backbone = partial(Features, width=4, stem=stem, output_stride=output_stride)
    assert rates_of(DeepLabV3Plus(backbone=backbone, features=8), size) == rates


def test_rates_can_be_given():
    net = DeepLabV3Plus(backbone=partial(Features, width=4, output_stride=16), rates=(1, 2, 4))
    assert rates_of(net, (64, 64)) == [1, 2, 4]


# Errors


def traced(net, *shape, train=False):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = init_shapes(net, x)
    return jax.eval_shape(
        partial(net.apply, train=train, mutable=["batch_stats"]),
        variables,
        x,
        rngs={"dropout": jax.random.key(0)},
    )


def test_training_on_one_picture_is_an_error_that_says_what_to_do():
    net = DeepLabV3Plus(backbone=TinyFeatures, features=8)
    with pytest.raises(ValueError, match=r"aspp/pooled cannot normalise .* two or more pictures"):
        traced(net, 1, 16, 16, 3, train=True)
    traced(net, 1, 16, 16, 3)  # inference, and what init does, are possible
    traced(net, 2, 16, 16, 3, train=True)
    jax.eval_shape(
        lambda x: net.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, True),
        jnp.ones((1, 16, 16, 3)),
    )


def test_an_fcn_trains_on_one_picture_of_more_than_one_feature():
    net = FCN(backbone=OneStage)  # thins four times
    traced(net, 1, 16, 16, 3, train=True)
    with pytest.raises(ValueError, match="batch norm of hidden cannot normalise"):
        traced(net, 1, 4, 4, 3, train=True)


@BOTH
@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 16, 3), (2, 4, 16, 16, 3)])
def test_a_wrong_rank_is_an_error_that_says_what_is_right(head, shape):
    with pytest.raises(ValueError, match=r"takes pictures \[B, H, W, C\]; got shape") as error:
        traced(head(), *shape)
    assert str(shape) in str(error.value)


@BOTH
def test_a_classifier_as_backbone_is_an_error_that_names_num_classes(head):
    with pytest.raises(ValueError, match=r"shape \(2, 10\).*num_classes=None"):
        traced(head(backbone=partial(TinyFeatures, num_classes=10)), 2, 16, 16, 3)


@BOTH
def test_a_finished_backbone_is_an_error_that_says_what_to_write(head):
    with pytest.raises(ValueError, match=r"write partial\(ResNet18, num_classes=None\)"):
        traced(head(backbone=TinyFeatures()), 2, 16, 16, 3)


def test_a_backbone_of_one_stage_serves_both_heads():
    for head in HEADS:
        logits, _ = traced(head(num_classes=3, backbone=OneStage), 2, 16, 16, 3, train=True)
        assert logits.shape == (2, 16, 16, 3)
