import json
import os

import pytest

from experiments.core.errors import UserError
from experiments.runs import find as runs


def test_runs_are_found_below_folders_but_not_inside_runs(tmp_path, write_run):
    folder = write_run("base", seed=1)
    (folder / "checkpoints" / "20").mkdir(parents=True)
    (folder / "checkpoints" / "20" / "config.json").write_text("{}")
    write_run("odconv", fold=3)
    (tmp_path / "runs" / "figures").mkdir()
    found, problems = runs.find(
        [tmp_path, tmp_path / "runs"]
    )  # each once, however often it is named
    assert problems == []
    assert [(run.config, run.seed, run.fold, run.place) for run in found] == [
        ("base", 1, None, "seed 1"),
        ("odconv", 0, 3, "fold 3"),
    ]
    assert found[0].folder == folder
    assert found[0].test("accuracy") == 0.9 and found[0].cost("macs") == 2_000_000
    assert [row["step"] for row in found[0].rows] == [10, 10, 20, 20]
    with pytest.raises(UserError, match="There is no folder"):
        runs.find([tmp_path / "elsewhere"])


def test_summaries_of_earlier_versions_are_read(write_run):
    older = {"without": ("seed", "fold", "baseline", "label", "metric", "macs")}
    folder = write_run("odconv", seed=7, **older)
    run = runs.read(folder)
    # The seed is in the config.
    assert (run.seed, run.fold, run.baseline, run.label) == (7, None, "base", "odconv")
    assert run.metric == "accuracy" and run.cost("macs") is None
    assert runs.read(write_run("hard", fold=2, **older)).fold == 2
    segmentation = write_run("cbam", test={"miou": 0.4}, **older)
    assert runs.read(segmentation).metric == "miou"


def test_runs_that_count_for_nothing_say_why(tmp_path, write_run):
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
        "odd": ("summary.json", "[1]", "summary.json holds no JSON object"),
        "empty": ("summary.json", "{}", "no test accuracy"),
        "diverged": ("summary.json", '{"test": {"accuracy": null}}', "no test accuracy"),
        "unlike": ("summary.json", '{"test": 3}', "no test accuracy"),
    }
    for name, (file, text, _) in reasons.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": "hard", "dataset": "digits"}))
        (folder / file).write_text(text)
    write_run()
    found, problems = runs.find([tmp_path])
    assert [run.config for run in found] == ["base"]
    assert len(problems) == len(reasons)
    for problem in problems:
        assert reasons[problem.folder.name][2] in problem.reason
    known = {(p.config, p.dataset) for p in problems if p.folder.name != "started"}
    assert known == {("hard", "digits")}


def test_a_gan_has_finished_though_nothing_ranks_it(write_run):
    found = runs.read(write_run("dr_acgan", dataset="songs", metric=None))
    assert isinstance(found, runs.Problem) and found.config == "dr_acgan"
    assert found.reason.startswith("finished, and there is no metric to compare it by")
    assert "experiments.generate --judge" in found.reason


def test_a_run_that_was_repeated_after_an_error_is_finished(write_run):
    folder = write_run()
    (folder / "error.txt").write_text("The first attempt failed.")
    assert isinstance(runs.read(folder), runs.Run)


def test_of_two_equal_runs_the_later_one_counts(tmp_path, write_run):
    first = write_run(accuracy=0.1)
    later = first.rename(tmp_path / "runs" / "a-copy")
    first = write_run(accuracy=0.2)
    os.utime(later / "summary.json", (2e9, 2e9))
    found, problems = runs.find([tmp_path])
    assert [run.test("accuracy") for run in found] == [0.1]
    assert [problem.folder for problem in problems] == [first]
    assert "finished before runs/a-copy" in problems[0].reason


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), [1]])
def test_what_is_no_number_says_nothing(value):
    assert runs.number(value) is None
