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
    EfficientChannelAttention,
    FDConv,
    GatedConv,
    ODConv,
    PixelDynamicConv,
    RotatedConv,
    SqueezeExcite,
    Warehouse,
)
from dyn.models import (
    FCN,
    KERNEL_WAREHOUSE,
    VGG16,
    ConvNeXt,
    DeepLabV3Plus,
    DyMN,
    EfficientNetB0,
    EfficientNetB1,
    EfficientNetLite0,
    MobileNetV2,
    MobileNetV3,
    PooledConv,
    ResNet18,
    ResNet34,
    ResNet50,
    SKResNet18,
    SKResNet34,
    SKResNet50,
    SKResNeXt50,
    efficientnet,
)
from dyn.models.efficientnet import make_condconv_fields

pytestmark = pytest.mark.matrix


def dcd(pool, **fields):
    return {"conv": partial(DCDConv, pool=pool, **fields), "dense": DCDDense}


def mobile_dcd(reduction):
    return {**dcd(None, reduction=reduction), "dynamic_stages": range(2, 8)}


def od_conv(num_kernels, *names):
    return dict.fromkeys(
        ("conv", *names), partial(ODConv, num_kernels=num_kernels, attention_norm="batch")
    )


def gated(**fields):
    return {"conv": partial(GatedConv, **fields)}


# timm's 'd' variants.
DEEP = {"stem": "deep", "shortcut": PooledConv}


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
        (SKResNet18, {}, 1000, 11_958_056),
        (SKResNet34, {}, 1000, 22_282_376),
        (SKResNet50, {}, 1000, 25_803_160),
        (SKResNet50, DEEP, 1000, 25_822_392),
        (SKResNeXt50, {}, 1000, 27_479_784),
        (ResNet50, {"attention": EfficientChannelAttention, **DEEP}, 1000, 25_576_350),
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
        (ConvNeXt, {}, 1000, 28_589_128),
        (MobileNetV2, {}, 1000, 3_504_872),
        (MobileNetV2, od_conv(1, "depthwise"), 1000, 4_940_185),
        (MobileNetV2, od_conv(4, "depthwise"), 1000, 11_512_149),
        (MobileNetV2, {"width": 0.75, **od_conv(1, "depthwise")}, 1000, 3_507_113),
        (MobileNetV2, {"width": 0.75, **od_conv(4, "depthwise")}, 1000, 7_496_013),
        (MobileNetV2, {"width": 0.5, **od_conv(1, "depthwise")}, 1000, 2_425_537),
        (MobileNetV2, {"width": 0.5, **od_conv(4, "depthwise")}, 1000, 4_435_501),
        (MobileNetV2, mobile_dcd(1 / 8), 1000, 7_452_088),
        (MobileNetV2, mobile_dcd(1 / 16), 1000, 5_720_028),
        (MobileNetV3, {}, 1000, 5_483_032),
        (DyMN, {}, 527, 10_548_479),
        (DyMN, {"width": 2.0}, 527, 39_966_143),
        (DyMN, {"width": 0.4, "dynamic_blocks": "replace_se"}, 527, 1_829_287),
        (DyMN, {"dynamic_blocks": "replace_se"}, 527, 9_833_935),
        (EfficientNetB0, {}, 1000, 5_288_548),
        (EfficientNetB1, {}, 1000, 7_794_184),
        (EfficientNetLite0, {}, 1000, 4_652_008),
        (EfficientNetB0, make_condconv_fields(8), 1000, 24_013_284),
        (EfficientNetB1, make_condconv_fields(8), 1000, 39_715_968),
    ],
)
def test_number_of_parameters(network, fields, num_classes, parameters):
    net = network(num_classes=num_classes, **fields)
    # The number does not depend on the size of the pictures; small ones are quicker to trace.
    channels = 1 if network is DyMN else 3
    shapes = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, channels), jnp.float32))
    assert count_parameters(shapes["params"]) == parameters


@pytest.mark.parametrize(
    ("network", "macs", "shape"),
    [
        (VGG16, 15.47e9, (1, 224, 224, 3)),
        (MobileNetV2, 301e6, (1, 224, 224, 3)),
        (ConvNeXt, 4.46e9, (1, 224, 224, 3)),
        (MobileNetV3, 217e6, (1, 224, 224, 3)),
        (DyMN, 0.58e9, (1, 128, 1000, 1)),  # of ten seconds
    ],
)
def test_number_of_multiply_adds(network, macs, shape):
    net, x = network(num_classes=1000), jax.ShapeDtypeStruct(shape, jnp.float32)
    assert count_macs(net.apply, init_shapes(net, x), x) == pytest.approx(macs, rel=0.005)


@pytest.mark.parametrize("squeezed", [True, False])
def test_number_of_multiply_adds_of_efficientnet(squeezed):
    """By hand: positions times products of features, and 9 or 25 for each depthwise kernel."""
    macs, size, inputs = 112**2 * 9 * 3 * 32, 112, 32
    for expansion, kernel, features, blocks, strides in efficientnet.STAGES:
        for block in range(blocks):
            hidden, before = expansion * inputs, size
            size //= strides if block == 0 else 1
            macs += before**2 * inputs * hidden * (expansion > 1)
            macs += size**2 * (kernel**2 * hidden + hidden * features)
            macs += 2 * hidden * (inputs // 4) * squeezed
            inputs = features
    macs += 49 * 320 * 1280 + 1280 * 1000
    network = EfficientNetB0 if squeezed else EfficientNetLite0
    net, x = network(num_classes=1000), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert count_macs(net.apply, init_shapes(net, x), x) == macs


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


X = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
WAREHOUSES = {
    "kw1d4x_resnet18": 4_031_768,  # as its configuration is instantiated; the README says 4.08 M
    "kw1d2x_resnet18": 7_431_044,
    "kw1x_resnet18": 11_932_148,
    "kw2x_resnet18": 23_242_127,
    "kw4x_resnet18": 45_862_085,
    "kw1d2x_resnet50": 17_638_264,
    "kw1x_resnet50": 28_052_310,
    "kw4x_resnet50": 102_015_144,
    "kw1x_convnext_tiny": 39_370_674,
    "kw1d2x_mobilenetv2_100": 2_654_396,
    "kw1x_mobilenetv2_100": 5_168_146,
    "kw4x_mobilenetv2_100": 11_379_382,
    "kw1d2x_mobilenetv2_050": 1_466_888,
    "kw1x_mobilenetv2_050": 2_854_522,
    "kw4x_mobilenetv2_050": 4_648_587,
}


@pytest.mark.parametrize("name", KERNEL_WAREHOUSE)
def test_number_of_parameters_of_kernel_warehouse(name):
    params = init_shapes(KERNEL_WAREHOUSE[name](X, num_classes=1000), X)["params"]
    assert count_parameters(params) == WAREHOUSES[name]
    # By which the arrays of a checkpoint find their warehouses.
    cells = {warehouse: w["cells"].shape for warehouse, w in params["conv"].items()}
    assert len(set(cells.values())) == len(cells)
    if name == "kw1x_resnet18":
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
    if name == "kw1d2x_mobilenetv2_100":
        assert cells == {
            "stem": (9, 3, 32),
            "stage1_depthwise": (36, 1, 32),
            "stage2_depthwise": (18, 1, 144),
            "stage3_depthwise": (27, 1, 192),
            "stage4_depthwise": (36, 1, 384),
            "stage5_depthwise": (27, 1, 576),
            "stage6_expand": (6, 80, 480),
            "stage6_depthwise": (27, 1, 960),
            "stage6_project": (40, 160, 80),
            "head": (20, 32, 1000),
        }


def test_first_cells_of_low_rank_attention_are_those_of_the_authors():
    plan = KERNEL_WAREHOUSE["kw1d2x_resnet50"](X, num_classes=1000).conv.plan
    first = {}
    for _, members in plan:
        ratios = dict(cell_ratio=0.5, in_ratio=0.5, out_ratio=0.5)
        warehouse = Warehouse(tuple(kernel for _, kernel in members), **ratios)
        first |= {path: warehouse.first_cell(place) for place, (path, _) in enumerate(members)}

    def find(block, *names):
        return [first[block, name] for name in names]

    convs = ("conv1", "conv2", "conv3")
    assert find("stage1_block1", *convs[1:]) == [0, 18]
    assert find("stage1_block2", *convs) == [26, 34, 52]
    assert find("stage1_block3", *convs) == [60, 68, 86]
    assert find("stage2_block1", "conv1", "downsample_conv", "conv2") == [94, 110, 0]
    assert find("stage3_block1", "conv1", "downsample_conv") == [128, 144]
    assert find("stage4_block1", "conv1", "downsample_conv") == [196, 212]
