"""Tasks through the loop: tagging with unknown labels, segmentation, and an autoencoder."""

import csv

import numpy as np
import pytest
from products import thin_out
from sklearn.metrics import average_precision_score
from small_runs import change, rows, small

from experiments import data
from experiments.configs import odconv, soundscape_autoencoder, species_multilabel
from experiments.data import Dataset
from experiments.load import load
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

CLASSES = ("high", "low", "left", "never")


class Blots:
    """Pictures with a bright upper, lower or left part, or none; a label in four is not known."""

    def __init__(self, number, seed):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 2, (number, 4)).astype(np.float32)
        self.labels[:, 3] = 0
        self.inputs = rng.integers(0, 60, (number, 8, 8, 1)).astype(np.uint8)
        for picture, (high, low, left, _) in zip(self.inputs, self.labels, strict=True):
            picture[:2] += np.uint8(120 * high)
            picture[-2:] += np.uint8(120 * low)
            picture[3:5, :4] += np.uint8(120 * left)
        self.labels[rng.random((number, 4)) < 1 / 4] = np.nan
        self.names = [f"{index}.wav @ 0.0 s" for index in range(number)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"inputs": self.inputs[index], "label": self.labels[index]}


@pytest.fixture
def blots(monkeypatch):
    splits = {"train": Blots(64, 0), "validation": Blots(16, 1), "test": Blots(37, 2)}
    dataset = Dataset("blots", splits, CLASSES, (8, 8, 1))
    monkeypatch.setattr(data, "load_for_training", lambda *_, **__: dataset)
    return dataset


def test_tagging_learns_from_incomplete_labels(blots, tmp_path):
    settings = {"model.width": 4, "model.stem": "small", "optimizer.learning_rate": 1e-2}
    settings |= {"epochs": 12, "mixing.mixup": 0.2, "model.dropout": 0.1}
    config = change(species_multilabel.get_config("digits,smoke"), settings)
    summary = train(config, tmp_path)
    test = summary["test"]
    assert summary["metric"] == "map" and summary["best"]["map"] > 0.9
    assert test["map"] > 0.9 and test["total_ap"] > 0.9 and test["ap"]["never"] is None
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"curves.png", "mistakes.png", "pr_curves.png"} <= figures
    table = list(csv.DictReader(open(tmp_path / "per_class.csv")))
    assert [row["label"] for row in table] == list(CLASSES) and table[3]["average_precision"] == ""
    last = rows(tmp_path)[-1]
    assert last["split"] == "test" and last["ap"]["high"] == pytest.approx(
        float(table[0]["average_precision"]), abs=1e-5
    )
    # Each label has a probability of its own.
    model = load(tmp_path)
    said = model(blots.splits["test"].inputs)
    assert said.shape == (37, 4) and ((said >= 0) & (said <= 1)).all()
    known = ~np.isnan(blots.splits["test"].labels)
    total = average_precision_score(blots.splits["test"].labels[known], said[known])
    assert total == pytest.approx(test["total_ap"], abs=1e-4)


@pytest.mark.parametrize(
    "head", thin_out([{"name": "deeplabv3plus", "features": 8}, {"name": "fcn"}], step=2)
)
def test_segmentation_leaves_its_figures(head, squares, tmp_path):
    settings = {"model.width": 4, "batch_size": 4, "epochs": 1, "image_size": 16, "log_every": 1}
    settings["data.source"] = str(squares)
    config = change(odconv.get_config("mask_folder,smoke"), settings)
    config.head = head
    summary = train(config, tmp_path)
    assert summary["metric"] == "miou" and set(summary["test"]["iou"]) == {"ground", "square"}
    assert 0 <= summary["test"]["miou"] <= 1 and np.isfinite(summary["test"]["loss"])
    assert {"curves.png", "samples.png", "iou.png"} <= {
        p.name for p in (tmp_path / "figures").iterdir()
    }
    assert (tmp_path / "samples.npz").exists()
    last = rows(tmp_path)[-1]
    assert last["split"] == "test" and "iou" in last


def test_an_autoencoder_learns_and_leaves_its_figures(tmp_path):
    settings = {"autoencoder.widths": (4, 4), "autoencoder.pooling": "explicit"}
    settings |= {"image_size": 8, "epochs": 4, "optimizer.learning_rate": 0.02}
    summary = train(small(soundscape_autoencoder, "digits,smoke", **settings), tmp_path)
    losses = [row["loss"] for row in rows(tmp_path) if row["split"] == "validation"]
    assert summary["metric"] == "psnr" and losses[-1] < losses[0]
    assert summary["best"]["loss"] == min(losses)  # the lowest is the best
    assert 0 <= summary["test"]["dead_features"] <= 2 * 2 * 4
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"curves.png", "reconstructions.png"}

    network = load(tmp_path)
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    codes = network([picture, picture])
    assert codes.shape == (2, 16) and codes.dtype == np.float32
    np.testing.assert_array_equal(codes[0], codes[1])
