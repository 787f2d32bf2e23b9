import csv
import json
from pathlib import Path

import numpy as np

from experiments import files


def test_json_keeps_its_order_and_is_valid(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"test": {"accuracy": np.float32(0.5)}, "best": float("nan"), "a": 1})
    text = path.read_text()
    assert text.endswith("}\n")
    assert list(json.loads(text).items()) == [("test", {"accuracy": 0.5}), ("best", None), ("a", 1)]


def test_skipped_files_are_listed(tmp_path):
    assert files.write_skipped(tmp_path, []) is None
    assert list(tmp_path.iterdir()) == []
    path = files.write_skipped(tmp_path, [(Path("a,b.png"), 'not a "picture"'), ("c", "é")])
    with open(path, encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "reason"],
            ["a,b.png", 'not a "picture"'],
            ["c", "é"],
        ]
