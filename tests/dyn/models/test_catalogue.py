"""Networks by name: described layers, the features of stages, and the inputs of the classifier."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of

from dyn.layers import ODConv, by_stage
from dyn.models import (
    BasicBlock,
    ResNet,
    create_model,
    find_preprocessing,
    list_features,
    list_models,
)
from dyn.models.named_parts import name_warehouse

SMALL = {"width": 8, "stage_sizes": (1, 1), "stem": "small"}
X = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)


def test_names_are_listed_by_pattern():
    assert {"resnet18_odconv4x", "mobilenet_v2_odconv1x"} <= set(list_models("*odconv*"))
    assert len(list_models("kw*")) == 15 and list_models("nothing*") == []
    assert set(list_models("kw*")) < set(list_models())


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet18_odconv", {}, "did you mean 'resnet18_odconv4x'"),
        ("resnet18", {"conv": {"name": "odcon"}}, "conv: the layer 'odcon' .* 'odconv'"),
        ("resnet18", {"dense": {"name": "x"}}, "write one of dense, condconv"),
        (
            "resnet18",
            {"conv": {"num_kernels": 4}},
            "conv: the layer has no name: write one of conv",
        ),
        ("resnet18", {"dtype": "bfloat61"}, "dtype='bfloat61' is unknown: write"),
        ("resnet18", {"num_classes": -3}, "num_classes=-3 is negative"),
        ("???", {}, "list_models"),
        ("classifier", {"backbone": {"name": "resnet"}}, "backbone: the network 'resnet'"),
        (
            "resnet18",
            {"conv": {"name": "warehouse"}, "shortcut": {"name": "warehouse", "cell_ratio": 2}},
            "must have equal options",
        ),
    ],
)
def test_mistakes_are_explained(name, fields, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **fields)
    with pytest.raises(ValueError, match="returns no features"):
        list_features(create_model("resnet18", **SMALL))


def test_described_layers_are_those_of_functions():
    described = {"conv": {"name": "odconv", "num_kernels": 2}, "dtype": "bfloat16"}
    described = json.loads(json.dumps({**SMALL, **described, "num_classes": 5}))
    net = create_model("resnet18", **described)
    assert net.dtype == jnp.bfloat16 and net.stage_sizes == (1, 1)
    written = ResNet((1, 1), BasicBlock, 5, partial(ODConv, num_kernels=2), width=8, stem="small")
    assert shapes_of(init_shapes(net, X)) == shapes_of(init_shapes(written, X))
    involution = create_model("resnet50", conv={"name": "involution"}, **SMALL)
    params = init_shapes(involution, X)["params"]["stage1_block1"]
    assert "attention" in params["conv2"] and set(params["conv1"]) == {"kernel"}


def test_described_warehouses_are_shared_by_stage():
    warehouse = {"name": "warehouse"}
    backbone = {"name": "resnet18", **SMALL, "conv": warehouse, "shortcut": warehouse}
    net = create_model("classifier", hidden=4, num_classes=3, backbone=backbone)
    params = init_shapes(net, X)["params"]
    assert set(params["backbone"]["conv"]) == {"stage1", "stage2"}
    assert params["head"]["kernel"].shape == (4, 3)
    assert name_warehouse(("backbone", "stage2_block1", "conv1")) == "stage1"
    assert by_stage(("stage2_block1", "conv1")) == "stage1"
    assert (
        name_warehouse(("stage2_conv1",)) == "stage2" and name_warehouse(("last_conv",)) == "last"
    )


@pytest.mark.parametrize("name", ["net1", "net2"])
def test_described_warehouses_of_networks_for_series(name):
    fields = {"num_classes": 3, "features": 4, "pool": 8, "context": "series", "bins": 40}
    net = create_model(name, channels=1, conv={"name": "warehouse"}, **fields)
    params = init_shapes(net, jax.ShapeDtypeStruct((2, 64, 1), jnp.float32))["params"]
    assert set(params["conv"]) == {f"conv{n + 1}" for n in range(net.num_convs)}


def test_a_backbone_may_be_a_function():
    backbone = partial(ResNet, (1,), BasicBlock, num_classes=None, width=8, stem="small")
    params = init_shapes(create_model("fcn", num_classes=3, backbone=backbone), X)["params"]
    assert params["logits"]["kernel"].shape[-1] == 3 and "stage1_block1" in params["backbone"]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", SMALL),
        pytest.param("convnext_tiny", SMALL, marks=pytest.mark.matrix),
        pytest.param("vgg16", {**SMALL, "width": 2}, marks=pytest.mark.matrix),
        pytest.param("mobilenet_v3_large", {"width": 0.1}, marks=pytest.mark.matrix),
        pytest.param("net2", {"features": 4}, marks=pytest.mark.matrix),
    ],
)
def test_no_classes_are_the_inputs_of_the_head(name, fields):
    x = random_input(2, 32, 1) if name == "net2" else random_input(2, 16, 16, 3)
    whole, net = (create_model(name, num_classes=n, **fields) for n in (3, 0))
    variables = filled(whole, x, scale=0.1)
    head = variables["params"].pop("head")
    assert "head" not in init_shapes(net, x)["params"]
    y = jax.jit(net.apply)(variables, x)
    assert y.ndim == 2
    logits = jax.jit(whole.apply)({**variables, "params": {**variables["params"], "head": head}}, x)
    np.testing.assert_allclose(y @ head["kernel"] + head["bias"], logits, rtol=1e-4, atol=1e-5)


def test_features_of_the_stages():
    fields = {**SMALL, "stem": "imagenet", "output_stride": 4}
    stages = list_features(create_model("resnet18", features_only=True, **fields), (1, 32, 40, 3))
    assert stages == [(8, 4), (16, 4)]
    backbone = {"name": "resnet18", **fields}
    net = create_model("classifier", backbone=backbone, features_only=True)
    assert list_features(net) == stages


def test_preprocessing_by_name():
    lite = find_preprocessing("efficientnet_lite0")
    picture = np.full((2, 256, 256, 3), 191, np.uint8)
    np.testing.assert_allclose(lite(picture), (191 - 127) / 128, rtol=1e-6)
    assert (lite.size, lite.resize) == (224, 256)
    assert find_preprocessing("dymn10_as") is None and find_preprocessing("net1") is None
    with pytest.raises(ValueError, match="did you mean"):
        find_preprocessing("resnet_18")
