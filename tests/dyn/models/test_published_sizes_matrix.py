"""Published numbers of parameters and multiply-adds of all networks."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from layer_cases import init_shapes

from dyn.diagnostics import count_macs, count_parameters
from dyn.layers import (
    CBAM,
    CondConv,
    DCDConv,
    DCDDense,
    DynamicConv,
    FDConv,
    GatedConv,
    ODConv,
    PixelDynamicConv,
    RotatedConv,
    SqueezeExcite,
    share_kernels,
)
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


def dcd(pool):
    return {"conv": partial(DCDConv, pool=pool), "dense": DCDDense}


def od_conv(num_kernels, *names):
    return dict.fromkeys(
        ("conv", *names), partial(ODConv, num_kernels=num_kernels, attention_norm="batch")
    )


def gated(**fields):
    return {"conv": partial(GatedConv, **fields)}


def rotated(**fields):
    return {"conv": partial(RotatedConv, rotations=8, **fields)}


@pytest.mark.parametrize(
    ("network", "fields", "num_classes", "parameters"),
    [
        (ResNet34, {}, 1000, 21_797_672),
        (ResNet50, {}, 1000, 25_557_032),
        (ResNet18, {"conv": FDConv}, 1000, 12_258_712),
        (ResNet50, {"conv": FDConv}, 1000, 29_204_152),
        (ResNet50, {"conv": FDConv}, None, 27_155_152),
        (ResNet18, od_conv(1), 1000, 11_943_944),
        (ResNet50, od_conv(1), 1000, 28_635_112),
        (ResNet50, od_conv(4), 1000, 90_670_888),
        (
            ResNet18,
            dict.fromkeys(("conv", "shortcut"), partial(DynamicConv, num_kernels=4)),
            1000,
            45_471_092,
        ),
        (ResNet18, {"conv": partial(CondConv, num_kernels=8)}, 1000, 88_615_080),
        (ResNet18, dcd(pool=2), 1000, 14_703_332),
        (ResNet18, dcd(pool=2), 17, 14_136_141),
        (ResNet50, dcd(pool=1), 1000, 29_835_056),
        (ResNet18, {"attention": SqueezeExcite}, 1000, 11_778_592),
        (ResNet18, {"attention": CBAM}, 1000, 11_779_392),
        # Not published: 11,181,642 of the static network, and I O gates for each slice of a kernel,
        (ResNet18, gated(granularity="slice", static=True), 10, 12_402_250),
        # heads of (I + 1) O for filters, or a second kernel 9 I O and heads of 2 (I + 1).
        (ResNet18, gated(granularity="filter"), 10, 12_406_090),
        (ResNet18, gated(num_kernels=2), 10, 22_173_930),
        # A second kernel 9 I O, and s (I + 2) + 2 for the generator with s squeezed numbers.
        (ResNet18, {"conv": partial(PixelDynamicConv, num_kernels=2)}, 10, 22_452_490),
        # Orientations share one kernel; s (I + 2) + 8 (s + 1) for the generator, or O for scores.
        (ResNet18, rotated(), 10, 11_263_658),
        (ResNet18, rotated(pooling="max"), 10, 11_181_642),
        (ResNet18, rotated(pooling="attention"), 10, 11_185_482),
        (ResNet18, {}, 17, 11_185_233),
        (VGG16, {}, 1000, 138_357_544),
        (VGG16, {}, 17, 134_330_193),
        (VGG16, dcd(pool=1), 17, 135_076_177),
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
        (FCN, ResNet50, RESNET50, 9_448_981),  # published: 35,322,218 with an auxiliary head
        (DeepLabV3Plus, ResNet18, RESNET18, 1_162_117),
        (DeepLabV3Plus, ResNet50, RESNET50, 3_188_101),
    ],
)
def test_number_of_parameters_of_segmentation(head, network, backbone, own, output_stride):
    net = head(backbone=partial(network, num_classes=None, output_stride=output_stride))
    shapes = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    assert count_parameters(shapes["params"]["backbone"]) == backbone
    assert count_parameters(shapes["params"]) == backbone + own


@pytest.mark.parametrize(
    ("ratios", "parameters"),
    [
        (dict(cell_ratio=0.5, in_ratio=0.5, out_ratio=0.5), 7_431_044),
        (dict(cell_ratio=1), 11_932_148),
        (dict(cell_ratio=2), 23_242_127),
        (dict(cell_ratio=4), 45_862_085),
    ],
    ids=["half", "one", "two", "four"],
)
def test_number_of_parameters_with_shared_warehouses(ratios, parameters):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def network(conv):
        return ResNet18(num_classes=1000, conv=conv, shortcut=conv)

    net = share_kernels(network, x, **ratios)
    params = init_shapes(net, x)["params"]
    assert count_parameters(params) == parameters
    if ratios == {"cell_ratio": 1}:
        cells = {name: w["cells"].shape for name, w in params["conv"].items()}
        assert cells == {
            "stage1": (56, 64, 64),
            "stage2": (47, 128, 128),
            "stage3": (47, 256, 256),
            "stage4": (27, 512, 512),
        }

        def attention_outputs(block, name):
            return params[block][name]["attention"]["cell"]["bias"].size

        assert attention_outputs("stage1_block1", "conv1") == 513
        assert attention_outputs("stage2_block1", "conv1") == 1026
        assert attention_outputs("stage2_block1", "downsample_conv") == 114
        assert attention_outputs("stage3_block1", "conv2") == 432
        assert attention_outputs("stage3_block1", "conv1") == 864
        assert attention_outputs("stage4_block1", "downsample_conv") == 96
        assert attention_outputs("stage4_block2", "conv2") == 252
