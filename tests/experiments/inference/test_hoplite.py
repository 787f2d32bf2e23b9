"""Databases of perch-hoplite: the message without the library, and, where it is installed, what is in one."""

import sys
from pathlib import Path

import numpy as np
import pytest
from finished_runs import config_with

from experiments.core.errors import UserError
from experiments.inference.embeddings import Embedded
from experiments.inference.hoplite import check_database, write_database
from experiments.inference.trained import Trained


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "perch_hoplite.db.sqlite_usearch_impl", None)
    with pytest.raises(UserError, match="pip install --no-deps perch-hoplite"):
        check_database(tmp_path, overwrite=False)


def test_codes_are_found_again(tmp_path, rng):
    library = pytest.importorskip("perch_hoplite.db.sqlite_usearch_impl")
    codes = rng.normal(size=(5, 16)).astype(np.float32)
    files = ["a/1_20200102_030405.wav"] * 3 + ["b/2.wav"] * 2
    starts, silent = np.array([0.0, 1.0, 2.0, 0.0, 1.0]), np.array([0, 0, 1, 0, 0], bool)
    embedded = Embedded(codes, files, starts, starts + 2, silent)
    trained = Trained(config_with("audio,smoke"), ["x", "y"], (8, 8, 1), {}, Path("runs/birds"))
    labels = ["wren", "", "wren", "", "owl"]
    for _ in range(2):  # the second one replaces the first
        assert write_database(tmp_path, trained, embedded, labels) == 4
    with pytest.raises(UserError, match="exists"):
        check_database(tmp_path, overwrite=False)

    database = library.SQLiteUSearchDB.create(str(tmp_path))
    assert database.count_embeddings() == 4 and database.get_all_projects() == ["birds"]
    assert [one.name for one in database.get_all_deployments()] == ["a", "b"]
    recording, _ = database.get_all_recordings()
    assert recording.filename == files[0] and recording.datetime.hour == 3
    assert database.count_each_label() == {"wren": 1, "owl": 1}
    assert database.get_metadata("dyn").run == "runs/birds"
    found = {}
    for window in database.get_all_windows():
        name = database.get_recording(window.recording_id).filename
        found[name, window.offsets[0]] = database.get_embedding(window.id)
    for index in (0, 1, 3, 4):
        np.testing.assert_allclose(found[files[index], starts[index]], codes[index], rtol=1e-3)
