"""Segmentation through the loop, on a folder of toy pictures."""

import json

import numpy as np
import pytest

from experiments.configs import odconv
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

TINY = {"model.width": 4, "batch_size": 4, "epochs": 1, "image_size": 16, "log_every": 1}


@pytest.mark.parametrize("head", [{"name": "fcn"}, {"name": "deeplabv3plus", "features": 8}])
def test_a_run_leaves_its_figures(head, squares, tmp_path):
    config = odconv.get_config("mask_folder,smoke")
    config.update_from_flattened_dict({**TINY, "data.source": str(squares)})
    config.head = head
    summary = train(config, tmp_path)
    assert summary["metric"] == "miou" and set(summary["test"]["iou"]) == {"ground", "square"}
    assert 0 <= summary["test"]["miou"] <= 1 and np.isfinite(summary["test"]["loss"])
    assert {"curves.png", "samples.png", "iou.png"} <= {
        p.name for p in (tmp_path / "figures").iterdir()
    }
    assert (tmp_path / "samples.npz").exists()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["split"] == "test" and "iou" in rows[-1]
