"""The networks of `torch_references_mobile.json`, made here, and their weights."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from layer_cases import init_shapes
from torch_numbers import contrasting_pictures, scale_statistics, weight

from dyn.interop import from_torch
from dyn.interop.torch_weights import detect_source, num_classes
from dyn.layers import DCDConv, DCDDense, ODConv
from dyn.models import (
    DyMN,
    EfficientNetB0,
    EfficientNetLite0,
    MobileNetV2,
    MobileNetV3,
    PooledConv,
    ResNet,
    SKResNet18,
    SKResNet50,
    SKResNeXt50,
)
from dyn.models.efficientnet import TENSORFLOW, make_condconv_fields
from dyn.schedules import set_temperature

REFERENCES = json.loads(Path(__file__).with_name("torch_references_mobile.json").read_text())
Efficient = partial(EfficientNetB0, width=1 / 8, depth=1 / 2)


def odconv(kernels):
    conv = partial(ODConv, num_kernels=kernels, attention_norm="batch")
    return partial(MobileNetV2, width=1 / 8, conv=conv, depthwise=conv)


def selective(network, **fields):
    return partial(ResNet, **network.keywords | {"stage_sizes": (1, 1), "width": 16} | fields)


NETWORKS = {
    "efficientnet": Efficient,
    "efficientnet, same padding": partial(Efficient, **TENSORFLOW),
    "efficientnet, 4 experts": partial(Efficient, **make_condconv_fields(4), **TENSORFLOW),
    "efficientnet_lite0": partial(EfficientNetLite0, width=1 / 8),
    "mobilenet_v2": partial(MobileNetV2, width=1 / 8),
    "mobilenet_v3": partial(MobileNetV3, width=1 / 4),
    "dymn": partial(DyMN, width=1 / 4),
    "dymn, replace_se": partial(DyMN, width=1 / 4, dynamic_blocks="replace_se"),
    "odconv_mobilenet_v2, K = 1": odconv(1),
    "odconv_mobilenet_v2, K = 4": odconv(4),
    "dcd_mobilenet_v2": partial(
        MobileNetV2,
        width=1 / 8,
        conv=partial(DCDConv, pool=None, reduction=1 / 16),
        dense=DCDDense,
        dynamic_stages=range(2, 8),
    ),
    "skresnet18": selective(SKResNet18),
    "skresnet50": selective(SKResNet50),
    "skresnet50d": selective(SKResNet50, stem="deep", shortcut=PooledConv),
    "skresnext50": selective(SKResNeXt50),
}
# Those of ResNets do not begin with the name of their table.
SOURCES = dict.fromkeys(("skresnet18", "skresnet50", "skresnext50"), "selective")
SOURCES["skresnet50d"] = "resnet_d"
# The published networks for AudioSet have 1, those for ImageNet 30.
TEMPERATURES = {"dymn": 1.0, "dymn, replace_se": 30.0}


def weights_of(name):
    reference = REFERENCES[name]
    weights = {
        f"{module}.{leaf}": weight(f"{module}.{leaf}", shape)
        for module, leaves in reference["shapes"].items()
        for leaf, shape in leaves.items()
    }
    scale_statistics(weights, reference["scales"])
    return weights


def assert_torchs_logits(name):
    """Asserts that a network with imported weights has torch's logits; both are computed in float64."""
    weights, net = weights_of(name), NETWORKS[name](num_classes=5)
    assert detect_source(weights) == SOURCES.get(name, name.partition(",")[0])
    assert num_classes(weights) == 5
    with jax.enable_x64(True):
        x = jnp.asarray(contrasting_pictures(name), jnp.float64)
        shapes = init_shapes(net, x)
        wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), shapes)
        imported = from_torch({part: wide[part] for part in ("params", "batch_stats")}, weights)
        variables = imported.variables
        if name in TEMPERATURES:
            ones = jax.tree.map(jnp.ones_like, shapes["attention"])
            variables = set_temperature(variables | {"attention": ones}, TEMPERATURES[name])
        logits = np.asarray(jax.jit(net.apply)(variables, x))
    assert imported.kept == ()
    unused = {"num_batches_tracked", "lambdas", "init_v"}
    assert {key.rpartition(".")[2] for key in imported.left_out} <= unused
    # In float32 errors of layers that change the logits little would not show.
    np.testing.assert_allclose(logits, REFERENCES[name]["logits"], rtol=0, atol=1e-8)
