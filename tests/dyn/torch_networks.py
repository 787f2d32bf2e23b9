"""The networks of `torch_references.json`, made here, and their weights."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from torch_numbers import weight

from dyn.layers import CondConv, DCDConv, DCDDense, ODConv, SqueezeExcite
from dyn.models import (
    VGG16,
    BasicBlock,
    Bottleneck,
    MobileNetV2,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
)

REFERENCES = json.loads(Path(__file__).with_name("torch_references.json").read_text())
PublishedODConv = partial(ODConv, attention_norm="batch")
Small = partial(ResNet, (1, 1))
NETWORKS = {
    "resnet18": ("torchvision", ResNet18),
    "resnet34": ("torchvision", ResNet34),
    "resnet50": ("torchvision", ResNet50),
    "seresnet": (
        "torchvision",
        partial(Small, BasicBlock, attention=partial(SqueezeExcite, min_squeeze=8)),
    ),
    "odconv18": ("odconv", partial(ResNet18, conv=partial(PublishedODConv, num_kernels=4))),
    "odconv50": (
        "odconv",
        partial(Small, Bottleneck, conv=partial(PublishedODConv, num_kernels=4)),
    ),
    "odconv50, K = 1": (
        "odconv",
        partial(Small, Bottleneck, conv=partial(PublishedODConv, num_kernels=1)),
    ),
    "condconv": (
        "condconv",
        partial(Small, BasicBlock, conv=partial(CondConv, num_kernels=3), context="block"),
    ),
    "dcd": ("dcd", partial(Small, BasicBlock, conv=DCDConv, dense=DCDDense)),
    "vgg16": ("vgg16", VGG16),
    "mobilenet_v2": (
        "mobilenet_v2",
        lambda width, **fields: MobileNetV2(width=width / 64, **fields),
    ),
}


def weights_of(name):
    shapes = REFERENCES[name]["shapes"]
    return {key: weight(key, shape) for key, shape in shapes.items()}


def network(name, **fields):
    return NETWORKS[name][1](**{"num_classes": 5, "width": 8} | fields)


def variable_shapes(net):
    x = jax.ShapeDtypeStruct((2, 44, 36, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    return {name: variables.get(name, {}) for name in ("params", "batch_stats")}


def assert_torchs_logits(logits, name):
    np.testing.assert_allclose(logits, REFERENCES[name]["logits"], rtol=0, atol=1e-4)
