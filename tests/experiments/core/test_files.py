import csv
import json
import os
from pathlib import Path

import numpy as np

from experiments.core import files


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


def test_a_list_of_skipped_files_goes_with_the_last_of_them(tmp_path):
    path = files.write_skipped(tmp_path, [("a.png", "truncated")])
    assert path.exists()
    assert files.write_skipped(tmp_path, []) is None and not path.exists()


def test_names_that_are_not_utf8_are_written_all_the_same(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    assert r"caf\udce9.png,empty" in files.write_skipped(tmp_path, [(name, "empty")]).read_text()
    files.write_json(tmp_path / "a.json", {"file": name})
    assert json.loads((tmp_path / "a.json").read_text()) == {"file": name}
