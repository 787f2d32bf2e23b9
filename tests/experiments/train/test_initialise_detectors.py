"""Detectors and segmentation networks start from a classifier, detectors also from other detectors."""

import jax
import numpy as np
import pytest
import torch_zip
from finished_runs import config_with, write_finished
from new_states import start_from
from torchvision_detectors import list_shapes, make_weights

from experiments.core.errors import UserError

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

PICTURE = np.zeros((64, 64, 3), np.float32)
ODCONV = {"name": "odconv", "num_kernels": 2}
DETECTOR = "voc2012_instances,smoke"


def start(source, num_classes=3, **changes):
    config = config_with(DETECTOR, **changes)
    _, state, words = start_from(source, config, num_classes, PICTURE, scale=0.0)
    return state.params, state.batch_stats, words


def test_a_classifier_starts_the_backbone(tmp_path):
    config = config_with("folder,smoke", **{"model.depth": 10})
    _, theirs = write_finished(tmp_path / "run", config, "abcd", PICTURE.shape)
    params, statistics, words = start(tmp_path / "run", conv=ODCONV, **{"detector.norm": "frozen"})
    np.testing.assert_array_equal(
        params["backbone"]["stem_conv"]["kernel"], theirs["params"]["stem_conv"]["kernel"]
    )
    assert params["backbone"]["stage1_block1"]["conv1"]["kernel"].ndim == 5  # of every candidate
    assert not any(leaf.any() for leaf in jax.tree.leaves(params["rpn"]))
    jax.tree.map(np.testing.assert_array_equal, statistics["backbone"], dict(theirs["batch_stats"]))
    assert "parameters taken over; new: backbone/" in words


@pytest.mark.long
def test_a_static_detector_starts_a_dynamic_one_of_other_classes_without_masks(tmp_path):
    _, theirs = write_finished(tmp_path / "run", config_with(DETECTOR), "abcd", PICTURE.shape)
    changes = {"conv": ODCONV, "detector.name": "faster_rcnn"}
    params, _, words = start(tmp_path / "run", **changes)
    assert set(params) == {"backbone", "fpn", "rpn", "box_head"}
    for layer in ("hidden1", "hidden2"):
        ours, others = (tree["box_head"][layer]["kernel"] for tree in (params, theirs["params"]))
        np.testing.assert_array_equal(ours, others)
    assert not params["box_head"]["classes"]["kernel"].any()
    assert "new (other classes): " in words
    with pytest.raises(UserError, match=r"detector\.norm=group"):
        start(tmp_path / "run", **changes, **{"detector.norm": "frozen"})


@pytest.mark.long
@pytest.mark.parametrize(("masks", "name"), [(True, "mask_rcnn"), (False, "mask_rcnn")])
def test_torchvision_starts_a_detector(tmp_path, masks, name):
    weights = make_weights(list_shapes(18, 91, masks))
    path = torch_zip.save(tmp_path / "maskrcnn.pth", weights)
    changes = {"model.depth": 18, "model.width": 64, "conv": ODCONV, "detector.name": name}
    changes |= {"detector.size": "published", "detector.norm": "frozen"}
    params, statistics, words = start(path, num_classes=21, **changes)
    fc7 = weights["roi_heads.box_head.fc7.weight"]
    np.testing.assert_array_equal(params["box_head"]["hidden2"]["kernel"], fc7.T)
    np.testing.assert_array_equal(
        statistics["backbone"]["stem_norm"]["var"], weights["backbone.body.bn1.running_var"]
    )
    assert params["mask_head"]["conv1"]["kernel"].any() == masks
    assert not params["box_head"]["classes"]["kernel"].any() and "other classes" in words
    with pytest.raises(UserError, match=r"detector\.norm=frozen"):
        start(path, num_classes=21, **changes | {"detector.norm": "group"})
    with pytest.raises(UserError, match=r"Such weights fit --config\.detector\.name=mask_rcnn"):
        start(path, num_classes=21, **changes | {"detector.size": "small"})


@pytest.mark.parametrize("head", ["fcn", "deeplabv3plus"])
def test_a_classifier_starts_a_segmentation_network(tmp_path, head):
    _, theirs = write_finished(tmp_path / "run", config_with("folder,smoke"), "abcd", PICTURE.shape)
    config = config_with("mask_folder,smoke", **{"head.name": head})
    _, state, words = start_from(tmp_path / "run", config, 3, PICTURE, scale=0.0)
    for ours, others in ((state.params, "params"), (state.batch_stats, "batch_stats")):
        backbone = {name: theirs[others][name] for name in ours["backbone"]}
        jax.tree.map(np.testing.assert_array_equal, dict(ours["backbone"]), backbone)
    new = [tree for name, tree in state.params.items() if name != "backbone"]
    assert new and not any(leaf.any() for leaf in jax.tree.leaves(new))
    assert "parameters taken over" in words
