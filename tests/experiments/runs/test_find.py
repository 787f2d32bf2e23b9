import json
import os

import pytest

from experiments.core.errors import UserError
from experiments.runs.find import ExcludedRun, Run, find_runs, finite_or_none, read_run


def test_runs_below_folders_but_not_inside_runs(tmp_path, write_run):
    folder = write_run("base", seed=1)
    (folder / "checkpoints" / "20").mkdir(parents=True)
    (folder / "checkpoints" / "20" / "config.json").write_text("{}")
    write_run("odconv", fold=3)
    (tmp_path / "runs" / "figures").mkdir()
    # Each run counts once, however often it is found.
    found, excluded = find_runs([tmp_path, tmp_path / "runs"])
    assert excluded == []
    assert [(run.config, run.seed, run.fold, run.replicate) for run in found] == [
        ("base", 1, None, "seed 1"),
        ("odconv", 0, 3, "fold 3"),
    ]
    assert found[0].folder == folder
    assert found[0].test_metric("accuracy") == 0.9 and found[0].summary_number("macs") == 2_000_000
    assert [row["step"] for row in found[0].log] == [10, 10, 20, 20]
    with pytest.raises(UserError, match="There is no folder"):
        find_runs([tmp_path / "elsewhere"])


def test_summaries_of_earlier_versions(write_run):
    older = {"without": ("seed", "fold", "baseline", "label", "metric", "macs")}
    folder = write_run("odconv", seed=7, **older)
    run = read_run(folder)
    # The seed is in the config.
    assert (run.seed, run.fold, run.baseline, run.label) == (7, None, "base", "odconv")
    assert run.metric == "accuracy" and run.summary_number("macs") is None
    assert read_run(write_run("hard", fold=2, **older)).fold == 2
    segmentation = write_run("cbam", test={"miou": 0.4}, **older)
    assert read_run(segmentation).metric == "miou"


def test_excluded_runs_have_a_reason(tmp_path, write_run):
    reasons = {
        "failed": (
            "error.txt",
            "The loss is nan\nat step 45.",
            "failed: The loss is nan at step 45.",
        ),
        "silent": ("error.txt", "", "its error.txt is empty"),
        "started": ("config.json", "{}", "not finished"),
        "stopped": (
            "metrics.jsonl",
            '{"step": 1200, "split": "train"}\n',
            "stopped after step 1,200",
        ),
        "torn": ("summary.json", '{"config": "ba', "summary.json cannot be read"),
        "odd": ("summary.json", "[1]", "holds no JSON object"),
        "empty": ("summary.json", "{}", "no test accuracy"),
        "diverged": ("summary.json", '{"test": {"accuracy": null}}', "no test accuracy"),
        "unlike": ("summary.json", '{"test": 3}', "test is 3 instead of an object"),
    }
    for name, (file, text, _) in reasons.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": "hard", "dataset": "digits"}))
        (folder / file).write_text(text)
    write_run()
    found, excluded = find_runs([tmp_path])
    assert [run.config for run in found] == ["base"]
    assert len(excluded) == len(reasons)
    for run in excluded:
        assert reasons[run.folder.name][2] in run.reason
    known = {(p.config, p.dataset) for p in excluded if p.folder.name != "started"}
    assert known == {("hard", "digits")}


def test_gan_is_excluded(write_run):
    found = read_run(write_run("dr_acgan", dataset="songs", metric=None))
    assert isinstance(found, ExcludedRun) and found.config == "dr_acgan"
    assert "experiments.generate --judge" in found.reason


def test_finished_after_an_error(write_run):
    folder = write_run()
    (folder / "error.txt").write_text("The first attempt failed.")
    assert isinstance(read_run(folder), Run)


def test_later_of_two_equal_runs_counts(tmp_path, write_run):
    first = write_run(accuracy=0.1)
    later = first.rename(tmp_path / "runs" / "a-copy")
    first = write_run(accuracy=0.2)
    os.utime(later / "summary.json", (2e9, 2e9))
    found, excluded = find_runs([tmp_path])
    assert [run.test_metric("accuracy") for run in found] == [0.1]
    assert [run.folder for run in excluded] == [first]
    assert "finished before runs/a-copy" in excluded[0].reason


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), [1]])
def test_not_a_finite_number(value):
    assert finite_or_none(value) is None
