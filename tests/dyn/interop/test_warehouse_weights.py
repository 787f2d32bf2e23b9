"""Checkpoints of KernelWarehouse's authors: their published numbers, and every array of every network."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from layer_cases import assert_published, filled, init_shapes, sines

from dyn.interop import SOURCES, from_torch
from dyn.interop.torch_weights import detect_source, num_classes
from dyn.layers import KernelShape, Warehouse, WarehouseConv, WarehouseDense
from dyn.models import KERNEL_WAREHOUSE, ConvNeXt

# Published numbers, from arrays of sines in torch's layout.


class Shared(nn.Module):
    """Applies the second of two convolutions of one warehouse."""

    spatial_partition: bool = True
    basis_ratio: float = 1.0

    @nn.compact
    def __call__(self, x):
        cells = Warehouse(
            (KernelShape((3, 3), 4, 4), KernelShape((3, 3), 4, 8)),
            param_dtype=jnp.float64,
            spatial_partition=self.spatial_partition,
            name="cells",
        )
        fields = {"use_bias": False, "padding": 1, "attention_norm": "batch"}
        fields |= {"param_dtype": jnp.float64, "basis_ratio": self.basis_ratio}
        return WarehouseConv(8, (3, 3), **fields, warehouse=cells, place=1, name="stem_conv")(x)


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        halves = dict.fromkeys(("cell_ratio", "in_ratio", "out_ratio"), 0.5)
        fields = {"param_dtype": jnp.float64, "attention_norm": "batch"}
        return WarehouseDense(8, **halves, **fields, name="head")(x)


def attention_weights(layer, in_features, **arrays):
    """Returns the arrays of an attention under torch's names; those after the norm are passed."""
    arrays = {
        "fc1.weight": sines((16, in_features), 1.3),
        "norm1.weight": 1 + sines((16,), 1.6, 0.1),
        "norm1.bias": sines((16,), 1.9),
        "norm1.running_mean": np.zeros(16),
        "norm1.running_var": np.ones(16),
        "norm1.num_batches_tracked": np.array(7),
        **arrays,
    }
    return {f"{layer}.attention.{name}": array for name, array in arrays.items()}


def whole_head(blocks, cells):
    outputs = blocks * (cells + 1)
    return {"fc2.weight": sines((outputs, 16), 2.2), "fc2.bias": sines((outputs,), 2.5)}


LOW_RANK_HEAD = {
    "fc2.weight": sines((18 * (18 + 16 + 1), 16), 2.2),
    "fc3.weight": sines((9, 16), 2.5),
    "basis_bias": sines((18 * 28,), 2.8),
}
PICTURE = sines((2, 4, 5, 5), 0.05, 1.0, 0.23).transpose(0, 2, 3, 1)
CASES = {
    "KW-A": (
        *(Shared(), PICTURE, (27, 4, 4, 1, 1)),
        attention_weights("conv1", 4, **whole_head(18, 27)),
        (-0.7848171511, 376.9846173455),
    ),
    "KW-B": (
        *(Shared(basis_ratio=1 / 16), PICTURE, (27, 4, 4, 1, 1)),
        attention_weights("conv1", 4, **LOW_RANK_HEAD),
        (-3.2768099014, 351.3205913688),
    ),
    "KW-C": (
        *(Classifier(), sines((2, 6), 0.05, 1.0, 0.23), (2, 4, 3, 1)),
        {
            **attention_weights("classifier.1.conv", 6, **whole_head(4, 2)),
            "classifier.1.conv.bias": sines((8,), 0.9),
        },
        (3.9274485640, 9.3453063079),
    ),
    "KW-D": (
        *(Shared(spatial_partition=False), PICTURE, (3, 4, 4, 3, 3)),
        attention_weights("conv1", 4, **whole_head(2, 3)),
        (0.0518945312, 98.9984817540),
    ),
}


@pytest.mark.parametrize(
    "name",
    [n if n in ("KW-B", "KW-C") else pytest.param(n, marks=pytest.mark.matrix) for n in CASES],
)
def test_published_numbers_from_torchs_arrays(name):
    net, x, cells, weights, sums = CASES[name]
    weights = {"warehouse_manager.weights.0": sines(cells, 0.7), **weights}
    source = "kernel_warehouse_mobilenet_v2" if name == "KW-C" else "kernel_warehouse"
    place = "head/warehouse" if name == "KW-C" else "cells"
    table = ((r"warehouse_manager\.weights", place), *SOURCES[source])
    with jax.enable_x64(True):
        shapes = init_shapes(net, jnp.asarray(x))
        variables, left_out, _ = from_torch(shapes, weights, table)
        variables = {**variables, "attention": jax.tree.map(jnp.zeros_like, shapes["attention"])}
        # Statistics are float32 here; the authors' numbers come from float64.
        variables = jax.tree.map(lambda array: np.asarray(array, np.float64), variables)
    assert [entry.rpartition(".")[2] for entry in left_out] == ["num_batches_tracked"]
    assert_published(net, variables, x, sums)


# The names of every array of every network, written down once more, from ours to the authors'.


def name_resnet(path):
    block, _, layer = path.rpartition("/")
    if not block:
        return {"stem_conv": "conv1", "stem_norm": "bn1", "head": "fc"}[layer]
    stage, number = map(int, re.findall(r"\d+", block))
    layer = layer.replace("downsample_conv", "downsample.0").replace(
        "downsample_norm", "downsample.1"
    )
    return f"layer{stage}.{number - 1}.{layer.replace('norm', 'bn')}"


def name_mobilenet(path):
    block, _, layer = path.rpartition("/")
    ends = {
        "stem_conv": "features.0.0",
        "stem_norm": "features.0.1",
        "head": "classifier.1",
        "last_conv": "features.18.0",
        "last_norm": "features.18.1",
    }
    if not block:
        return ends[layer]
    stage, number = map(int, re.findall(r"\d+", block))
    index = sum((1, 2, 3, 4, 3, 3, 1)[: stage - 1]) + number
    order = ("depthwise", "project") if index == 1 else ("expand", "depthwise", "project")
    part, _, norm = layer.partition("_")
    n = order.index(part)
    inner = str(n + bool(norm)) if part == "project" else f"{n}.{int(bool(norm))}"
    return f"features.{index}.conv.{inner}"


def name_convnext(path):
    block, _, layer = path.rpartition("/")
    if path.startswith("stem"):
        return f"downsample_layers.0.{int(path == 'stem_norm')}"
    if path in ("last_norm", "head"):
        return path.removeprefix("last_")
    numbers = [int(n) - 1 for n in re.findall(r"\d+", path)]
    if not block and "block" not in path:
        return f"downsample_layers.{numbers[0]}.{int(path.endswith('conv'))}"
    names = {"depthwise": "dwconv", "norm": "norm", "expand": "pwconv1", "project": "pwconv2"}
    inner = names[layer] if block else ""
    return ".".join(filter(None, ("stages", str(numbers[0]), str(numbers[1]), inner)))


def name_authors_arrays(variables, plan, name_layer):
    """Returns a network's arrays in torch's layout, under the names of the authors' checkpoints."""
    order = [name for name, _ in plan]
    heads = {"squeeze": "fc1", "norm": "norm1", "cell": "fc2", "basis": "fc3"}
    weights = {}
    for collection in ("params", "batch_stats"):
        flat = traverse_util.flatten_dict(variables.get(collection, {}), sep="/")
        for path, value in flat.items():
            layer, _, leaf = path.rpartition("/")
            if leaf == "cells":
                number = order.index(layer.partition("/")[2])
                # Those of the dense layer have one tap, and those of convolutions two.
                taps = (1,) if order[number] == "head" else (1, 1)
                value = np.swapaxes(value, 1, 2).reshape(
                    *value.shape[:1], *value.shape[:0:-1], *taps
                )
                weights[f"warehouse_manager.weights.{number}"] = value
                continue
            layer, _, inner = layer.partition("/attention")
            module = name_layer(layer)
            dynamic = layer == "head" and f"{layer}/attention/cell/kernel" in flat
            module += ".conv" if dynamic else ""
            if module == "classifier.1":
                module = "classifier"  # without a layer of dropout before it
            name = heads[inner.strip("/")] if inner.strip("/") else ""
            if "/attention" in path:
                module += ".attention" + ("." + name if name else "")
            if leaf == "kernel":
                value = np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 2 else value.T
            torchs = {"kernel": "weight", "scale": "weight", "bias": "bias"}
            torchs |= {"mean": "running_mean", "var": "running_var"}
            leaf = torchs[leaf]
            if path.endswith("attention/bias"):
                leaf = "basis_bias"
            if re.fullmatch(r"stage\d_block\d/scale", path):
                leaf = "gamma"
                value = value.reshape(1, -1, 1, 1) if plan else value
            weights[f"{module}.{leaf}"] = value
    return weights


SMALL = {
    "resnet": (name_resnet, {"width": 16, "stage_sizes": (1, 1, 2, 1)}),
    "convnext": (name_convnext, {"width": 8, "stage_sizes": (1, 1, 2, 1)}),
    "mobilenetv2": (name_mobilenet, {"width": 0.5}),
}
X = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


@pytest.mark.matrix
@pytest.mark.parametrize("name", KERNEL_WAREHOUSE)
def test_every_array_of_a_published_network_has_its_place(name):
    (kind,) = [kind for kind in SMALL if kind in name]
    name_layer, fields = SMALL[kind]
    net = KERNEL_WAREHOUSE[name](X, num_classes=7, **fields)
    shapes = init_shapes(net, X)
    trained = filled(net, X)
    weights = name_authors_arrays(trained, net.conv.plan, name_layer)
    if kind == "resnet":
        assert "layer2.0.conv1.attention.fc1.weight" in weights
        assert weights["warehouse_manager.weights.3"].shape[3:] == (1, 1)
    assert (
        detect_source(weights)
        == {
            "resnet": "kernel_warehouse",
            "convnext": "kernel_warehouse_convnext",
            "mobilenetv2": "kernel_warehouse_mobilenet_v2",
        }[kind]
    )
    assert num_classes(weights) == 7
    got = from_torch(shapes, weights).variables
    for collection in ("params", "batch_stats"):
        want = trained.get(collection, {})
        jax.tree.map(np.testing.assert_array_equal, got.get(collection, {}), want)


def test_weights_of_a_static_convnext():
    net = ConvNeXt(num_classes=7, width=8, stage_sizes=(1, 1))
    trained = filled(net, X)
    weights = name_authors_arrays(trained, (), name_convnext)
    # Their 1x1 convolutions are linear layers.
    weights = {n: w[:, :, 0, 0] if "pwconv" in n and w.ndim > 2 else w for n, w in weights.items()}
    assert detect_source(weights) == "convnext"
    got = from_torch(init_shapes(net, X), weights).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, got, trained["params"])
