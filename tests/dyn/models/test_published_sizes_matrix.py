"""Published numbers of parameters and multiply-adds of all networks."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from layer_cases import init_shapes

from dyn.diagnostics import count_macs, count_parameters
from dyn.layers import (
    GatedConv,
    PixelDynamicConv,
    RotatedConv,
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
    EfficientNetLite0,
    MobileNetV2,
    MobileNetV3,
    ResNet18,
    ResNet50,
    create_model,
    efficientnet,
    list_models,
)

pytestmark = pytest.mark.matrix


def gated(**fields):
    return {"conv": partial(GatedConv, **fields)}


def rotated(**fields):
    return {"conv": partial(RotatedConv, rotations=8, **fields)}


PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet18_odconv1x": 11_943_944,
    "resnet50_odconv1x": 28_635_112,
    "resnet50_odconv4x": 90_670_888,
    "resnet18_dyconv4x": 45_471_092,
    "resnet18_condconv8x": 88_615_080,
    "resnet18_dcd": 14_703_332,
    "resnet50_dcd": 29_835_056,
    "resnet18_fdconv": 12_258_712,
    "resnet50_fdconv": 29_204_152,
    "resnet18_se": 11_778_592,
    "resnet18_cbam": 11_779_392,
    "seresnet50": 28_088_024,
    "ecaresnet50d": 25_576_350,
    "skresnet18": 11_958_056,
    "skresnet34": 22_282_376,
    "skresnet50": 25_803_160,
    "skresnet50d": 25_822_392,
    "skresnext50_32x4d": 27_479_784,
    "vgg16": 138_357_544,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v2_odconv1x": 4_940_185,
    "mobilenet_v2_odconv4x": 11_512_149,
    "mobilenet_v2_075_odconv1x": 3_507_113,
    "mobilenet_v2_075_odconv4x": 7_496_013,
    "mobilenet_v2_050_odconv1x": 2_425_537,
    "mobilenet_v2_050_odconv4x": 4_435_501,
    "mobilenet_v2_dcd": 5_720_028,
    "mobilenet_v2_dcd_fc8": 7_452_088,
    "mobilenet_v3_large": 5_483_032,
    "dymn10_as": 10_548_479,
    "dymn20_as": 39_966_143,
    "dymn04_replace_se_as": 1_829_287,
    "dymn10_replace_se_as": 9_833_935,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_lite0": 4_652_008,
    "tf_efficientnet_cc_b0_8e": 24_013_284,
    "tf_efficientnet_cc_b1_8e": 39_715_968,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_number_of_parameters(name):
    # The number does not depend on the size of the pictures; small ones are quicker to trace.
    channels = 1 if name.startswith("dymn") else 3
    shapes = init_shapes(
        create_model(name), jax.ShapeDtypeStruct((2, 32, 32, channels), jnp.float32)
    )
    assert count_parameters(shapes["params"]) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "fields", "parameters"),
    [
        ("resnet50_fdconv", {"num_classes": None}, 27_155_152),
        ("resnet18_dcd", {"num_classes": 17}, 14_136_141),
        ("resnet18", {"num_classes": 17}, 11_185_233),
        ("vgg16", {"num_classes": 17}, 134_330_193),
        ("vgg16_dcd", {"num_classes": 17}, 135_076_177),
        # Without a classifier the last warehouse, of half its kernel of 1280 x 1000, is missing.
        ("kw1d2x_mobilenetv2_100", {"num_classes": 0}, None),
        # Not published: 11,181,642 of the static network, and I O gates for each slice of a kernel,
        ("resnet18", gated(granularity="slice", static=True), 12_402_250),
        # heads of (I + 1) O for filters, or a second kernel 9 I O and heads of 2 (I + 1).
        ("resnet18", gated(granularity="filter"), 12_406_090),
        ("resnet18", gated(num_kernels=2), 22_173_930),
        # A second kernel 9 I O, and s (I + 2) + 2 for the generator with s squeezed numbers.
        ("resnet18", {"conv": partial(PixelDynamicConv, num_kernels=2)}, 22_452_490),
        # Orientations share one kernel; s (I + 2) + 8 (s + 1) for the generator, or O for scores.
        ("resnet18", rotated(), 11_263_658),
        ("resnet18", rotated(pooling="max"), 11_181_642),
        ("resnet18", rotated(pooling="attention"), 11_185_482),
    ],
)
def test_number_of_parameters(name, fields, parameters):
    net = create_model(name, **{"num_classes": 10, **fields})
    shapes = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    if parameters is None:
        assert "head" not in shapes["params"]["conv"]
    else:
        assert count_parameters(shapes["params"]) == parameters


def test_every_published_network_without_a_number_above_is_made():
    """Those that no test of this folder counts."""
    counted = {*PARAMETERS, *WAREHOUSES, *list_models("rednet*")}
    for name in set(list_models()) - counted - {"net1", "net2"}:
        assert create_model(name, num_classes=3).num_classes == 3


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
