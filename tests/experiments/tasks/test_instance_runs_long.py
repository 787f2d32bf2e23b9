"""A detector through the whole loop, on made-up pictures; interrupted, it is bit for bit the same."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import assert_same_run, change, interrupted_before, rows

from experiments.configs import odconv
from experiments.load import load
from experiments.train.loop import train

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("standard_promotion", "compiled_once"),
]
pytest.importorskip("pycocotools")

TINY = {
    "model.width": 4,
    "data.limit": 0,
    "batch_size": 4,
    "epochs": 2,
    "log_every": 1,
    "checkpoint_every": 3,
    "detector.threshold": 0.1,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of pictures with discs and squares, of class and object masks."""
    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for folder in ("images", "masks", "objects"):
        (root / folder).mkdir()
    (root / "classes.txt").write_text("ground\ndisc\nsquare\n")
    y, x = np.mgrid[:48, :64]
    for number in range(20):
        picture = rng.integers(0, 90, (48, 64, 3), np.uint8)
        classes, objects = np.zeros((2, 48, 64), np.uint8)
        for k, (left, label) in enumerate(((4, 1), (34, 2))):
            cy, cx = 12 + rng.integers(0, 20), left + 12
            inside = (
                (y - cy) ** 2 + (x - cx) ** 2 < 100
                if label == 1
                else (np.maximum(abs(y - cy), abs(x - cx)) < 9)
            )
            picture[inside], classes[inside], objects[inside] = 100 + 70 * label, label, k + 1
        Image.fromarray(picture).save(root / "images" / f"{number}.png")
        Image.fromarray(classes).save(root / "masks" / f"{number}.png")
        Image.fromarray(objects).save(root / "objects" / f"{number}.png")
    return root


@pytest.mark.parametrize("name", ["mask_rcnn", "faster_rcnn", "cond_inst"])
def test_a_detector_is_trained_evaluated_and_resumed(shapes, tmp_path, name):
    config = odconv.get_config("mask_folder_instances,smoke")
    config = change(config, {**TINY, "detector.name": name, "data.source": str(shapes)})
    run, whole = tmp_path / "run", tmp_path / "whole"
    summary = train(config, whole)
    test = summary["test"]
    assert summary["metric"] == "miou" and 0 <= test["miou"] <= 1 and np.isfinite(test["loss"])
    assert ("mask_ap" in test) == (name != "faster_rcnn") and "box_ap" in test
    assert set(test["class_ap50"]) == {"disc", "square"}
    figures = {path.stem for path in (whole / "figures").iterdir()}
    assert figures == {"curves", "detections", "best_and_worst", "ap", "iou"}
    table = list(csv.DictReader(open(whole / "per_class.csv")))
    assert [row["label"] for row in table] == ["disc", "square"]
    assert {"objectness", "classifier", "masks"} & set(rows(whole)[0])

    with interrupted_before(4):
        train(config, run)
    train(config, run)
    assert_same_run(run, whole)

    trained, picture = load(whole), np.zeros((30, 40, 3), np.uint8)
    (found,) = trained([picture])
    assert found.boxes.shape == (len(found.labels), 4) and len(trained.classes) == 3


def test_a_detector_learns(shapes, tmp_path):
    """Two shapes on noise, at sizes and steps that a laptop does in minutes."""
    config = odconv.get_config("mask_folder_instances,smoke")
    changes = {**TINY, "model.width": 16, "epochs": 60, "data.source": str(shapes)}
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        summary = train(change(config, changes | {"detector.threshold": 0.5}), tmp_path)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert summary["test"]["ap50"] > 0.5 and summary["test"]["miou"] > 0.6
