"""The whole loop on other data: series, and pictures of a folder."""

import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import assert_same_run, small, write_series

from experiments.configs import base, odconv
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]

FIGURES = {"curves.png", "confusion.png", "predictions.png", "pr_curves.png", "mistakes.png"}


def test_series_train_through_the_same_loop(tmp_path):
    source = {"data.source": write_series(tmp_path, 16, 24)}
    summary = train(small(odconv, "ucr,name=Toy,smoke", **source), tmp_path / "run")
    assert summary["dataset"] == "Toy" and summary["steps"] == 4
    assert summary["examples"]["train"] == summary["examples"]["test"] == 16
    figures = {p.name for p in (tmp_path / "run" / "figures").iterdir()}
    assert figures == FIGURES | {"attention.png"}


def test_pictures_of_a_folder_train_through_the_same_loop(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "pets" / "cats" / "broken.png").write_bytes(b"no picture")
    changes = {"data.source": str(tmp_path / "pets"), "image_size": 16}
    summary = train(small(base, "folder,smoke", **changes), tmp_path / "run")
    assert summary["dataset"] == "pets" and sum(summary["examples"].values()) == 24
    assert summary["skipped"] == 1
    assert "broken.png" in (tmp_path / "run" / "skipped.csv").read_text()
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} == FIGURES


def test_a_run_interrupted_after_its_last_step_writes_the_result(tmp_path):
    train(small(), tmp_path / "whole")
    # A process that dies while it draws leaves everything but the figures and the summary.
    unfinished = shutil.ignore_patterns("summary.json", "figures")
    shutil.copytree(tmp_path / "whole", tmp_path / "run", ignore=unfinished)
    train(small(), tmp_path / "run")
    figures = {p.name for p in (tmp_path / "run" / "figures").iterdir()}
    assert figures == FIGURES | {"attention.png"}
    assert_same_run(tmp_path / "run", tmp_path / "whole")
