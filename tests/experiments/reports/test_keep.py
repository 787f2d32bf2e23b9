import json

import pytest

from experiments.core.errors import UserError
from experiments.report import main as report_runs
from experiments.reports.keep import keep_summaries
from experiments.reports.report import write_report
from experiments.runs.find import find_runs, read_run
from experiments.runs.schema import RANKING
from experiments.tasks import TASKS


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


def change_summary(folder, **changes):
    file = folder / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("difference", ["dataset", "seed", "params_sha256", "not finished"])
def test_the_copy_of_another_run_is_not_replaced(tmp_path, write_run, difference):
    def keep(study, *runs):
        for n, run in enumerate(runs):
            run.rename(tmp_path / study / f"run{n}")
        return keep_summaries(find_runs([tmp_path / study])[0], tmp_path / "kept")

    for study in ("one", "two"):
        (tmp_path / study).mkdir()
    kept = keep("one", write_run("base"), change_summary(write_run("hard"), params_sha256="a"))
    there = {path: path.read_bytes() for copy in kept for path in copy.iterdir()}
    match difference:
        case "dataset":
            other = write_run("hard", dataset="Adiac")
        case "seed":
            other = write_run("hard", seed=1)
        case "params_sha256":
            other = change_summary(write_run("hard"), params_sha256="b")
        case _:
            (kept[1] / "summary.json").unlink()
            del there[kept[1] / "summary.json"]
            other = write_run("odconv")
    with pytest.raises(UserError, match=r"kept.run1 has the copy of another run than .*two.run1"):
        keep("two", write_run("base", 0.95), other)
    assert {path: path.read_bytes() for copy in kept for path in copy.iterdir()} == there


def test_a_run_that_has_trained_further_is_kept_again(tmp_path, write_run):
    folder = change_summary(write_run("base"), params_sha256="a")
    (copy,) = keep_summaries([read_run(folder)], tmp_path / "kept")
    change_summary(folder, params_sha256="b", steps=40)
    rows = (folder / "metrics.jsonl").read_text()
    more = json.dumps({"step": 40, "split": "validation", "loss": 0.02, "accuracy": 0.9})
    (folder / "metrics.jsonl").write_text(rows + more + "\n")
    keep_summaries([read_run(folder)], tmp_path / "kept")
    assert read_run(copy).summary["steps"] == 40
    # Another run, of more steps, began in another way.
    change_summary(folder, params_sha256="c", steps=60)
    (folder / "metrics.jsonl").write_text(more + "\n")
    with pytest.raises(UserError, match="another run"):
        keep_summaries([read_run(folder)], tmp_path / "kept")


def test_the_metric_of_every_task_is_kept():
    metrics = {task.metric for task in TASKS.values()}
    assert metrics - {None} <= set(RANKING)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, runs):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--keep=.*file cannot be written: "):
        report_runs(str(runs[0].folder), out=str(tmp_path / "report"), keep=str(tmp_path / "file"))
    assert (tmp_path / "report" / "report.md").exists()
