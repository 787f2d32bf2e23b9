"""Published numbers of parameters and multiply-adds of all networks."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from layer_cases import init_shapes

from dyn.diagnostics import count_macs, count_parameters
from dyn.layers import DCDConv, DCDDense, ODConv
from dyn.models import (
    FCN,
    VGG16,
    DeepLabV3Plus,
    MobileNetV2,
    ResNet18,
    ResNet34,
    ResNet50,
)

pytestmark = pytest.mark.matrix

DCD = {"conv": partial(DCDConv, pool=1), "dense": DCDDense}


def od_conv(num_kernels, *names):
    return dict.fromkeys(("conv", *names), partial(ODConv, num_kernels=num_kernels))


@pytest.mark.parametrize(
    ("network", "fields", "num_classes", "parameters"),
    [
        (ResNet34, {}, 1000, 21_797_672),
        (ResNet50, {}, 1000, 25_557_032),
        (ResNet18, od_conv(1), 1000, 11_943_944),
        (ResNet50, od_conv(1), 1000, 28_635_112),
        (ResNet50, od_conv(4), 1000, 90_670_888),
        (ResNet18, {}, 17, 11_185_233),
        (VGG16, {}, 1000, 138_357_544),
        (VGG16, {}, 17, 134_330_193),
        (VGG16, DCD, 17, 135_076_177),
        (MobileNetV2, {}, 1000, 3_504_872),
        (MobileNetV2, od_conv(1, "depthwise"), 1000, 4_940_185),
        (MobileNetV2, od_conv(4, "depthwise"), 1000, 11_512_149),
        (MobileNetV2, {"width": 0.5, **od_conv(1, "depthwise")}, 1000, 2_425_537),
        (MobileNetV2, {"width": 0.5, **od_conv(4, "depthwise")}, 1000, 4_435_501),
    ],
)
def test_number_of_parameters(network, fields, num_classes, parameters):
    net = network(num_classes=num_classes, **fields)
    # The number does not depend on the size of the pictures; small ones are quicker to trace.
    shapes = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    assert count_parameters(shapes["params"]) == parameters


@pytest.mark.parametrize(("network", "macs"), [(VGG16, 15.47e9), (MobileNetV2, 301e6)])
def test_number_of_multiply_adds(network, macs):
    net, x = network(num_classes=1000), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert count_macs(net.apply, init_shapes(net, x), x) == pytest.approx(macs, rel=0.005)


RESNET18, RESNET50 = 11_689_512 - 513_000, 25_557_032 - 2_049_000  # without classifiers


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    ("head", "network", "backbone", "own"),
    [
        (FCN, ResNet18, RESNET18, 592_789),
        (FCN, ResNet50, RESNET50, 9_448_981),
        (DeepLabV3Plus, ResNet18, RESNET18, 1_162_117),
        (DeepLabV3Plus, ResNet50, RESNET50, 3_188_101),
    ],
)
def test_number_of_parameters_of_segmentation(head, network, backbone, own, output_stride):
    net = head(backbone=partial(network, num_classes=None, output_stride=output_stride))
    shapes = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    assert count_parameters(shapes["params"]["backbone"]) == backbone
    assert count_parameters(shapes["params"]) == backbone + own


def test_fcn_on_resnet50_has_the_published_number_without_its_auxiliary_head():
    """torchvision's fcn_resnet50 has a second head, on the third stage."""
    hidden = 1024 // 4
    auxiliary = 9 * 1024 * hidden + 2 * hidden + hidden * 21 + 21
    assert RESNET50 + 9_448_981 + auxiliary == 35_322_218
