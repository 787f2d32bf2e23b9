"""An attempt to train one run of many, in folders that cannot be used."""

import pytest

from experiments.core.errors import UserError
from experiments.runs.folder import InUseError, lock_workdir
from experiments.train import grid
from experiments.train.grid import PlannedRun, attempt_run, load_config


def test_a_file_in_the_way_of_the_folder_is_a_failure(tmp_path, capsys):
    (tmp_path / "base").write_text("")
    run = PlannedRun(load_config("base", "digits,smoke"), tmp_path / "base/seed0")
    assert not attempt_run(run, {})
    assert "failed: The workdir" in capsys.readouterr().out


def test_no_room_for_the_reason_is_no_second_failure(tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise UserError("out of luck")

    def write_text(file, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(grid, "train", fail)
    monkeypatch.setattr(grid, "write_text", write_text)
    assert not attempt_run(PlannedRun(load_config("base", "digits,smoke"), tmp_path), {})
    assert "failed: out of luck" in capsys.readouterr().out


def test_nothing_is_written_into_the_folder_of_another_process(tmp_path):
    run = PlannedRun(load_config("base", "digits,smoke"), tmp_path)
    with lock_workdir(tmp_path), pytest.raises(InUseError):
        attempt_run(run, {})
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
