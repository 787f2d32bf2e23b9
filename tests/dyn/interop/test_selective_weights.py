"""timm's layouts of SK-, ECA- and 'd' ResNets: each array arrives where its layer is, transposed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import init_shapes

from dyn.interop import from_torch
from dyn.interop.torch_weights import SOURCES, detect_source
from dyn.layers import EfficientChannelAttention
from dyn.models import (
    BasicBlock,
    PooledConv,
    ResNet,
    SelectiveBasicBlock,
    SelectiveBottleneck,
    SKResNet18,
    SKResNet50,
)

Small = partial(ResNet, stage_sizes=(1, 1), num_classes=5, width=16)
DEEP = {"stem": "deep", "shortcut": PooledConv}


def norm(name, size):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (size,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def select(name, inputs, outputs, squeezed):
    """The shapes of timm's `SelectiveKernel`."""
    shapes = {}
    for path in (0, 1):
        shapes[f"{name}.paths.{path}.conv.weight"] = (outputs, inputs, 3, 3)
        shapes |= norm(f"{name}.paths.{path}.bn", outputs)
    shapes[f"{name}.attn.fc_reduce.weight"] = (squeezed, outputs, 1, 1)
    shapes |= norm(f"{name}.attn.bn", squeezed)
    shapes[f"{name}.attn.fc_select.weight"] = (2 * outputs, squeezed, 1, 1)
    return shapes


def convolve(name, inputs, outputs, size):
    """The shapes of timm's `ConvNormAct`."""
    return {f"{name}.conv.weight": (outputs, inputs, size, size), **norm(f"{name}.bn", outputs)}


def project(name, inputs, outputs, first):
    conv = {f"{name}.{first}.weight": (outputs, inputs, 1, 1)}
    return conv | norm(f"{name}.{first + 1}", outputs)


STEM = {"conv1.weight": (16, 3, 7, 7), **norm("bn1", 16)}
DEEP_STEM = {
    "conv1.0.weight": (8, 3, 3, 3),
    **norm("conv1.1", 8),
    "conv1.3.weight": (8, 8, 3, 3),
    **norm("conv1.4", 8),
    "conv1.6.weight": (16, 8, 3, 3),
    **norm("bn1", 16),
}


def basic(first):
    """A static BasicBlock with efficient channel attention in each stage."""
    shapes = {}
    for stage, inputs, outputs in ((1, 16, 16), (2, 16, 32)):
        block = f"layer{stage}.0."
        shapes |= {f"{block}conv1.weight": (outputs, inputs, 3, 3), **norm(f"{block}bn1", outputs)}
        shapes |= {f"{block}conv2.weight": (outputs, outputs, 3, 3), **norm(f"{block}bn2", outputs)}
        shapes |= {f"{block}se.conv.weight": (1, 1, 3)}
    return shapes | project("layer2.0.downsample", 16, 32, first)


LAYOUTS = {
    "skresnet18": (
        "selective",
        Small(block=SelectiveBasicBlock, conv=SKResNet18.keywords["conv"]),
        STEM
        | select("layer1.0.conv1", 8, 16, 16)
        | convolve("layer1.0.conv2", 16, 16, 3)
        | select("layer2.0.conv1", 8, 32, 16)
        | convolve("layer2.0.conv2", 32, 32, 3)
        | project("layer2.0.downsample", 16, 32, 0),
    ),
    "skresnet50d": (
        "resnet_d",
        Small(
            block=SelectiveBottleneck, conv=SKResNet50.keywords["conv"], stage_sizes=(1,), **DEEP
        ),
        DEEP_STEM
        | convolve("layer1.0.conv1", 16, 16, 1)
        | select("layer1.0.conv2", 8, 16, 8)
        | convolve("layer1.0.conv3", 16, 64, 1)
        | project("layer1.0.downsample", 16, 64, 1),
    ),
    "ecaresnet": (
        "torchvision",
        Small(block=BasicBlock, attention=EfficientChannelAttention),
        STEM | basic(0),
    ),
    "ecaresnet, d": (
        "resnet_d",
        Small(block=BasicBlock, attention=EfficientChannelAttention, **DEEP),
        DEEP_STEM | basic(1),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_timms_arrays_fill_a_network(name):
    source, net, shapes = LAYOUTS[name]
    classes = net.width * 2 if len(net.stage_sizes) == 2 else 4 * net.width
    shapes = shapes | {"fc.weight": (5, classes), "fc.bias": (5,)}
    random = np.random.default_rng(0)
    weights = {
        key: random.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()
    }
    assert detect_source(weights) == source
    empty = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    variables, left_out, kept = from_torch(empty, weights)
    assert left_out == tuple(key for key in weights if key.endswith("num_batches_tracked"))
    assert kept == ()
    params = variables["params"]
    if "sk" in name:
        conv, torch = ("conv1", "layer1.0.conv1") if "18" in name else ("conv2", "layer1.0.conv2")
        layer = params["stage1_block1"][conv]
        want = weights[f"{torch}.paths.1.conv.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(layer["path1_conv"]["kernel"], want)
        want = weights[f"{torch}.attn.fc_select.weight"][..., 0, 0].T
        np.testing.assert_array_equal(layer["attention"]["path"]["kernel"], want)
    else:
        want = weights["layer2.0.se.conv.weight"].transpose(2, 1, 0)
        got = params["stage2_block1"]["attention"]["conv"]["kernel"]
        np.testing.assert_array_equal(got, want)


def test_tables_of_static_networks_are_found_first():
    """Names that several tables know are those of the first."""
    assert next(iter(SOURCES)) == "torchvision"
    names = [*STEM, *(name for name in basic(0) if ".se." not in name), "fc.weight", "fc.bias"]
    assert detect_source(names) == "torchvision"
