import csv
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core import files
from experiments.core.files import replace_file, to_json


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


def test_the_mark_of_the_encoding_is_at_the_start_alone(tmp_path):
    rows = [["Grünfink"], ["wren"]]
    files.write_csv(tmp_path / "a.csv", ["label"], rows, files.FOR_SPREADSHEETS)
    with files.append_csv(tmp_path / "b.csv", ["label"], encoding=files.FOR_SPREADSHEETS) as append:
        for row in rows:
            append([row])
    for path in (tmp_path / "a.csv", tmp_path / "b.csv"):
        assert path.read_bytes() == "\ufefflabel\r\nGrünfink\r\nwren\r\n".encode()
        assert files.read_csv(path) == [["label"], *rows]


def test_names_that_are_not_utf8_are_written_all_the_same(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    assert r"caf\udce9.png,empty" in files.write_skipped(tmp_path, [(name, "empty")]).read_text()
    files.write_json(tmp_path / "a.json", {"file": name})
    assert json.loads((tmp_path / "a.json").read_text()) == {"file": name}


def test_hosts_that_write_one_file_do_not_write_into_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: "one")
    with replace_file(tmp_path / "file") as mine:
        mine.write_text("mine")
        monkeypatch.setattr("socket.gethostname", lambda: "other")
        with replace_file(tmp_path / "file") as theirs:
            theirs.write_text("theirs")
    assert (tmp_path / "file").read_text() == "mine"


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with replace_file(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replace_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_plain_knows_every_scalar():
    values = {
        "bf16": jnp.array([0.5, jnp.nan], jnp.bfloat16),
        "flag": np.bool_(True),
        "pair": (np.int32(3), None),
        "set": {"b", "a"},
        "type": jnp.zeros((), jnp.int8),
    }
    expected = {"bf16": [0.5, None], "flag": True, "pair": [3, None], "set": ["a", "b"], "type": 0}
    assert to_json(values) == expected
