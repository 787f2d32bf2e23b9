import json

import pytest

from experiments.core.errors import UserError
from experiments.report import main as report_runs
from experiments.reports.keep import keep_summaries
from experiments.reports.report import write_report
from experiments.runs.find import find_runs


@pytest.fixture
def runs(tmp_path, write_run):
    for seed in range(2):
        write_run("base", 0.9, seed)
        write_run("odconv", 0.95, seed)
    return find_runs([tmp_path])[0]


def test_copies_make_the_same_tables(tmp_path, runs):
    copies = keep_summaries(runs, tmp_path / "kept")
    assert [copy.name for copy in copies] == [run.folder.name for run in runs]
    report = write_report([run.folder for run in runs], tmp_path / "report")
    again = write_report(copies, tmp_path / "again")
    assert report.with_name("report.csv").read_text() == again.with_name("report.csv").read_text()
    # The same may be done again, and copies are copied like runs.
    assert keep_summaries(find_runs(copies)[0], tmp_path / "kept") == copies


def test_paths_weights_and_training_steps_are_left_out(tmp_path, runs):
    run = runs[0]
    settings = {**run.settings, "data": {"source": "/home/somebody/Adiac"}, "init_from": "~/w.pth"}
    (run.folder / "config.json").write_text(json.dumps(settings))
    rows = [
        {"step": 10, "split": "train", "loss": 1.0},
        {"step": 20, "split": "validation", "loss": 0.5, "accuracy": 0.5, "f1": 0.4},
    ]
    (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run.folder / "maps.npz").write_bytes(b"pictures")
    (copy,) = keep_summaries(find_runs([run.folder])[0], tmp_path / "kept")
    assert {path.name for path in copy.iterdir()} == {
        "config.json",
        "summary.json",
        "metrics.jsonl",
    }
    kept = json.loads((copy / "config.json").read_text())
    assert kept["data"]["source"] == "Adiac" and kept["init_from"] == "w.pth"
    (row,) = map(json.loads, (copy / "metrics.jsonl").read_text().splitlines())
    assert row == {"step": 20, "split": "validation", "loss": 0.5, "accuracy": 0.5}


def test_a_run_is_not_replaced(runs):
    (runs[0].folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is the folder of a run"):
        keep_summaries(runs[:1], runs[0].folder.parent)
    assert keep_summaries([], "anywhere") == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, runs):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--keep=.*file cannot be written: "):
        report_runs(str(runs[0].folder), out=str(tmp_path / "report"), keep=str(tmp_path / "file"))
    assert (tmp_path / "report" / "report.md").exists()
