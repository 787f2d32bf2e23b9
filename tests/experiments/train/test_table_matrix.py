"""A run on a table of labels, several of them in a row, and its predictions."""

import csv

import numpy as np
import pytest
from picture_files import write_classes
from small_runs import small

from experiments import predict
from experiments.configs import base
from experiments.core import cli
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]


def test_a_table_with_several_labels_is_trained_on_and_predicted(tmp_path):
    root = write_classes(tmp_path / "pets", count=12)
    listed = [
        f"{kind}/{n}.png,{kind}{';even' if n % 2 == 0 else ''}"
        for kind in ("cat", "dog")
        for n in range(12)
    ]
    table = root / "labels.csv"
    table.write_text("\n".join(["path,label", *listed, "nowhere.png,cat"]) + "\n")
    changes = {"task": "tagging", "data.source": str(table), "image_size": 16, "epochs": 1}
    run = tmp_path / "run"
    summary = train(small(base, "folder,smoke", **changes), run)
    assert summary["classes"] == ["cat", "dog", "even"] and 0 <= summary["test"]["map"] <= 1
    assert summary["skipped"] == 1 and "nowhere.png" in (run / "skipped.csv").read_text()

    out = tmp_path / "predictions.csv"
    words = ["predict", str(run), str(root / "cat"), f"--out={out}"]
    assert cli.run(predict.main, words, predict.__doc__) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 * 3 and {row["label"] for row in rows} == {"cat", "dog", "even"}
    # Each label has a probability of its own.
    sums = [sum(float(row["probability"]) for row in rows[i : i + 3]) for i in range(0, 36, 3)]
    assert not np.allclose(sums, 1)
