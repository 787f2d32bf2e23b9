"""Files of torch's weights for every network, and files that do not fit."""

import jax
import mobile_names
import numpy as np
import pytest
import safetensors.numpy
import torch_zip
from finished_runs import config_with
from new_states import LIKE_TORCH, ODCONV, TORCH, start_from, weights_of
from products import thin_out
from torch_numbers import pictures

from dyn.interop import SOURCES
from experiments.core.errors import UserError
from experiments.tasks import make_task
from experiments.train import initialise

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

PICTURE = np.zeros((32, 32, 3), np.float32)


def start_from_file(path, num_classes=5, inputs=PICTURE, task="classification", **changes):
    like_torch = dict(LIKE_TORCH)
    if "model.network" in changes:  # only a ResNet has a depth
        del like_torch["model.depth"]
    config = config_with(**like_torch | {"task": task} | changes)
    model = make_task(config).make_model(num_classes, spatial_axes=2)
    _, state, words = start_from(path, config, num_classes, inputs, scale=0.0)
    return model, {"params": state.params, "batch_stats": state.batch_stats}, words


@pytest.fixture
def resnet18(tmp_path):
    """A file of a static network's weights, as torch's people publish them."""
    path = tmp_path / "resnet18.safetensors"
    safetensors.numpy.save_file(weights_of("resnet18"), path)
    return path


def logits(model, variables):
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, pictures())


def test_of_a_file_with_other_classes_or_without_a_head_the_head_stays_new(resnet18, tmp_path):
    _, variables, words = start_from_file(resnet18, num_classes=3)
    assert not variables["params"]["head"]["kernel"].any()
    assert variables["params"]["stem_conv"]["kernel"].any()
    assert (
        "60 of 62 parameters taken over; new (other classes): head/bias (3,), head/kernel" in words
    )
    weights = {k: v for k, v in weights_of("resnet18").items() if not k.startswith("fc.")}
    _, _, words = start_from_file(torch_zip.save(tmp_path / "body.pth", weights), conv=ODCONV)
    assert "head/kernel (64, 5)" in words and "60 of " in words


ODCONV18 = {"name": "odconv", "num_kernels": 4, "attention_norm": "batch"}


@pytest.mark.parametrize(
    ("name", "words", "changes"),
    [
        ("resnet18", "62 of ", {}),
        ("resnet18", "62 of ", {"conv": ODCONV}),
        ("odconv18", "parameters taken over, left out: 36 counts of batches", {"conv": ODCONV18}),
        ("vgg16", "32 of ", {"model.network": "vgg16"}),
        ("vgg16", "32 of ", {"model.network": "vgg16", "conv": ODCONV}),
        ("mobilenet_v2", "158 of ", {"model.network": "mobilenet_v2"}),
    ],
)
def test_a_file_starts_the_network_that_it_belongs_to(tmp_path, name, words, changes):
    path = torch_zip.save(tmp_path / f"{name}.pth", weights_of(name))
    model, variables, answer = start_from_file(path, **changes)
    assert words in answer
    np.testing.assert_allclose(logits(model, variables), TORCH[name]["logits"], 0, 1e-4)
    if "model.network" in changes:
        with pytest.raises(UserError, match=f"Such weights fit --config.model.network={name}"):
            start_from_file(path)


MOBILE = {
    "efficientnet_lite0": {"model.network": "efficientnet_lite0"},
    "efficientnet, 4 experts": {
        "model.network": "efficientnet_b0",
        "model.padding": "same",
        "conv": {"name": "condconv", "num_kernels": 4},
    },
    "mobilenet_v3": {"model.network": "mobilenet_v3"},
    "odconv_mobilenet_v2, K = 4": {"model.network": "mobilenet_v2", "conv": ODCONV18},
    "dcd_mobilenet_v2": {
        "model.network": "mobilenet_v2",
        "conv": {"name": "dcd", "reduction": 1 / 16},
        "classifier": {"name": "dcd"},
    },
    "dymn": {"model.network": "dymn", "conv": {"name": "dyconv", "num_kernels": 4}},
}


@pytest.mark.parametrize("name", thin_out(MOBILE, step=2))
def test_a_published_mobile_network_starts_from_its_file(tmp_path, name):
    shapes = mobile_names.FILES[name][0]
    constants = {"lambdas": [1, 1, 0.5, 0.5], "init_v": [1, 0, 0, 0]}
    weights = {
        key: np.array(constants.get(key.rpartition(".")[2], np.zeros(shape)), np.float32)
        for key, shape in shapes.items()
    }
    path = torch_zip.save(tmp_path / "file.pth", weights)
    picture = PICTURE[..., :1] if name == "dymn" else PICTURE
    changes = {"model.width": 64, **MOBILE[name]}
    _, _, words = start_from_file(path, num_classes=3, inputs=picture, **changes)
    number = int(words.partition(": ")[2].partition(" of ")[0])
    assert number > 100 and "new (other classes): head/" in words and "lambdas" not in words
    with pytest.raises(UserError, match="Such weights fit"):
        start_from_file(path)


def test_every_source_says_what_its_weights_fit():
    assert initialise._FITTING.keys() == SOURCES.keys()


@pytest.mark.parametrize("conv", [{"name": "conv"}, ODCONV], ids=["static", "dynamic"])
@pytest.mark.parametrize("task", ["classification", "tagging", "segmentation"])
def test_a_file_starts_the_backbone_whatever_its_own_classes(resnet18, task, conv):
    changes = {"conv": conv}
    if task != "segmentation":
        changes |= {"model.hidden": 7, "classifier": {"name": "dcd"}}
    _, variables, words = start_from_file(resnet18, task=task, **changes)
    params = dict(variables["params"])
    np.testing.assert_array_equal(
        params.pop("backbone")["stem_conv"]["kernel"],
        weights_of("resnet18")["conv1.weight"].transpose(2, 3, 1, 0),
    )
    assert params and not any(leaf.any() for leaf in jax.tree.leaves(params))
    assert "60 of " in words
    assert words.endswith("left out: fc.bias, fc.weight, 20 counts of batches")


FILES = {
    "a picture": (lambda path: path.write_bytes(b"GIF89a" + bytes(90)), "is not a file of weights"),
    "missing names": (
        lambda path: torch_zip.save(
            path, {k: v for k, v in weights_of("resnet18").items() if k != "conv1.weight"}
        ),
        "1 missing for parameters of the network: params/stem_conv/kernel (7, 7, 1, 8)",
    ),
    "another network": (
        lambda path: torch_zip.save(path, {f"blocks.{n}.attn.qkv": np.zeros(4) for n in range(9)}),
        "9 of 9 names are those of none of the sources",
    ),
    "another depth": (
        lambda path: torch_zip.save(path, weights_of("resnet34")),
        "Such weights fit a ResNet of their --config.model.depth",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_will_not_do_is_answered_before_anything_is_compiled(ask, tmp_path, kind):
    write, says = FILES[kind]
    write(tmp_path / "net.pth")
    words = [f"--config.{key}={value}" for key, value in LIKE_TORCH.items()]
    answer = ask(
        "--config=experiments/configs/odconv.py:smoke",
        *words,
        f"--config.init_from={tmp_path / 'net.pth'}",
    )
    assert says in answer and "net.pth" in answer
    assert ("Such weights fit" in answer) == (kind in ("missing names", "another depth"))
