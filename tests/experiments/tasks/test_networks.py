"""The networks that a config can name: their parts and sizes."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from small_runs import change

from experiments.configs import common
from experiments.core.errors import UserError
from experiments.tasks import make_task
from experiments.train.banner import describe_network
from experiments.train.control import count_config_parameters
from experiments.train.validate import resolve_config

pytestmark = pytest.mark.usefixtures("standard_promotion")

BATCH = {
    "inputs": jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32),
    "label": jax.ShapeDtypeStruct((8,), jnp.int32),
}


def config_of(network, argument="smoke", **changes):
    return change(common.get_config(argument), {"model.network": network, **changes})


def variables_of(config, num_classes=3):
    model = make_task(config).make_model(num_classes, spatial_axes=2)
    x = BATCH["inputs"]
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


@pytest.mark.parametrize("network", ["resnet", "vgg16"])
def test_a_network_takes_a_hidden_layer(network):
    config = config_of(network, **{"model.hidden": 5})
    config.conv = {"name": "warehouse"}
    _, variables = variables_of(config)
    params = variables["params"]
    assert {"backbone", "hidden", "head"} <= set(params)
    assert "head" not in params["backbone"] and params["head"]["kernel"].shape == (5, 3)
    assert "a hidden layer of 5" in describe_network(config)


def test_a_backbone_shares_its_warehouses_by_stage():
    config = config_of("resnet", "voc2012,smoke")
    config.conv = {"name": "warehouse"}
    _, variables = variables_of(config)
    assert set(variables["params"]["backbone"]["conv"]) == {"stage1", "stage2"}


@pytest.mark.parametrize("head", ["fcn", "deeplabv3plus"])
@pytest.mark.parametrize("network", ["mobilenet_v2", "efficientnet_lite0"])
def test_mobile_networks_segment(head, network):
    config = config_of(network, "voc2012", **{"head.name": head, "model.width": 8})
    model = make_task(config).make_model(3, spatial_axes=2)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    logits, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    assert logits.shape == (2, 64, 64, 3)


def test_a_smoke_run_has_one_block_in_each_stage():
    config = importlib.import_module("experiments.configs.dymn").get_config("smoke")
    params = variables_of(config)[1]["params"]
    blocks = {name for name in params if name.startswith("stage")}
    assert blocks == {f"stage{n}_block1" for n in range(1, 7)}
    assert describe_network(config).endswith("published, blocks of a stage: 1")


def test_a_width_of_64_is_as_published():
    config = config_of("mobilenet_v2", "folder")
    assert count_config_parameters(config) == 3_504_872 - 990 * 1281
    assert describe_network(config) == "MobileNetV2, 1 times as wide as published"
    config = config_of("efficientnet_lite0", "folder")
    assert count_config_parameters(config) == 4_652_008 - 990 * 1281
    assert describe_network(config) == "EfficientNet-Lite0, 1 times as wide as published"
    config = config_of("vgg16", "folder")
    assert count_config_parameters(config) == 138_357_544 - 990 * 4097
    assert describe_network(config) == "VGG-16, width 64"


def test_layers_are_where_their_authors_have_them():
    """Published numbers of parameters, less those of all but ten classes; DyMN's pictures were grey."""
    for name, parameters in (
        ("efficientnet_condconv", 13_314_116 - 990 * 1281),
        ("mobilenet_dcd", 5_720_028 - 990 * (1281 + 32 + 32)),
        ("dymn", 10_548_479 - 517 * 1281 + 2 * 9 * 16),
    ):
        module = importlib.import_module(f"experiments.configs.{name}")
        assert count_config_parameters(module.get_config("folder")) == parameters, name
    with pytest.raises(UserError, match="choose one of condconv, dyconv, odconv"):
        resolve_config(config_of("dymn"))


def test_unknown_networks_are_refused():
    with pytest.raises(UserError, match="did you mean 'vgg16'"):
        resolve_config(config_of("vgg19"))
    with pytest.raises(UserError, match="segmentation needs a resnet or a mobile network"):
        resolve_config(config_of("vgg16", "voc2012"))
    resolve_config(config_of("vgg16", **{"model.hidden": 8}))


@pytest.mark.parametrize("network", ["resnet", "mobilenet_v2"])
def test_blocks_are_computed_twice_to_save_memory(network):
    config = config_of(network, **{"model.remat": "blocks"})
    assert make_task(config).make_model(3, spatial_axes=2).remat is True


@pytest.mark.parametrize(
    ("classifier", "shapes"),
    [
        ({"name": "dyconv", "num_kernels": 3}, {"kernel": (3, 1, 16, 3), "bias": (3, 3)}),
        ({"name": "condconv", "num_kernels": 2}, {"kernel": (2, 1, 16, 3), "bias": (2, 3)}),
        ({"name": "warehouse", "in_ratio": 0.25}, {"bias": (3,)}),
    ],
    ids=lambda value: value.get("name", ""),
)
def test_a_classifier_may_be_dynamic(classifier, shapes):
    config = resolve_config(config_of("resnet", classifier=classifier))
    _, variables = variables_of(config)
    head = variables["params"]["head"]
    assert {name: head[name].shape for name in ("kernel", "bias") if name in head} == shapes
    assert ("warehouse" in head) == (classifier["name"] == "warehouse")
