"""An autoencoder through the loop, on digits."""

import json

import numpy as np
import pytest
from small_runs import small

from experiments.configs import soundscape_autoencoder
from experiments.load import load
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]

TINY = {"autoencoder.widths": (4, 4), "image_size": 8, "epochs": 4, "optimizer.learning_rate": 0.02}


def test_a_run_learns_and_leaves_its_figures(tmp_path):
    summary = train(
        small(
            soundscape_autoencoder, "digits,smoke", **TINY, **{"autoencoder.pooling": "explicit"}
        ),
        tmp_path,
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "validation"]
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
