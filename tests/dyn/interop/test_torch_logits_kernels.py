"""Torch's and our networks of assembled kernels, and ConvNeXts, have the same logits."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from torch_networks import variable_shapes
from torch_numbers import pictures, weight

from dyn.interop import from_torch
from dyn.interop.torch_weights import detect_source, num_classes
from dyn.layers import FDConv
from dyn.models import KERNEL_WAREHOUSE, Bottleneck, ConvNeXt, ResNet

FILE = Path(__file__).parents[1] / "torch_references_kernels.json"
REFERENCES = json.loads(FILE.read_text())


def warehouse(name, **fields):
    fields = {"num_classes": 5, "width": 8} | fields
    return KERNEL_WAREHOUSE[name](pictures(), **fields)


FREQUENCIES = partial(FDConv, num_kernels=32, attention_norm="batch")
NETWORKS = {
    "kw1x_resnet18": ("kernel_warehouse", partial(warehouse, stage_sizes=(2, 2))),
    "kw4x_resnet18": ("kernel_warehouse", partial(warehouse, stage_sizes=(1, 1))),
    "kw1d2x_resnet50": ("kernel_warehouse", partial(warehouse, stage_sizes=(2, 2))),
    "kw1x_mobilenetv2_100": ("kernel_warehouse_mobilenet_v2", partial(warehouse, width=1 / 8)),
    "kw1d2x_mobilenetv2_100": ("kernel_warehouse_mobilenet_v2", partial(warehouse, width=1 / 8)),
    "kw1x_convnext_tiny": (
        "kernel_warehouse_convnext",
        partial(warehouse, stage_sizes=(2, 1, 1)),
    ),
    "convnext": ("convnext", lambda _: ConvNeXt(5, width=8, stage_sizes=(2, 1, 1))),
    # The first stage has too few features for the authors' layer.
    "fdconv50": (
        "fdconv",
        lambda _: ResNet((1, 2), Bottleneck, num_classes=5, width=16, conv=FREQUENCIES),
    ),
}
QUICK = "kw1d2x_resnet50"


@pytest.mark.parametrize(
    "name",
    [n if n == QUICK else pytest.param(n, marks=pytest.mark.matrix) for n in NETWORKS],
)
def test_has_torchs_logits(name):
    source, make = NETWORKS[name]
    weights = {key: weight(key, shape) for key, shape in REFERENCES[name]["shapes"].items()}
    net = make(name)
    assert detect_source(weights) == source and num_classes(weights) == 5
    variables, left_out, kept = from_torch(variable_shapes(net), weights)
    assert left_out == tuple(key for key in weights if key.endswith("num_batches_tracked"))
    assert kept == ()
    # Closer than elsewhere: attention looks at means of pictures of noise, which differ little.
    logits = jax.jit(net.apply)(variables, pictures())
    np.testing.assert_allclose(logits, REFERENCES[name]["logits"], rtol=0, atol=1e-5)
