"""Small studies of series: folds, warm starts, failures, and what continues."""

import csv
import json

import numpy as np
import pytest
from small_runs import write_series

from experiments.core.errors import UserError
from experiments.reports.report import write_report
from experiments.runs.checkpoints import restore_best_variables
from experiments.train import grid
from experiments.train.grid import load_config
from experiments.train.study import run_study

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]

TINY = {"epochs": 1, "batch_size": 8, "log_every": 1, "series.features": 4, "series.bins": 4}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A UCR set of two classes: 48 series of 24 samples."""
    return write_series(tmp_path_factory.mktemp("ucr"), 24, 24)


def load_toy_configs(toy, *names):
    return [load_config(name, "ucr,name=Toy", {"data.source": toy, **TINY}) for name in names]


@pytest.fixture(scope="module")
def folded(compiled_once, toy, tmp_path_factory):
    """Net1, first static and then dynamic from its kernels, on three folds."""
    workdir = tmp_path_factory.mktemp("study") / "toy"
    run_study(load_toy_configs(toy, "net1_dynamic", "net1"), workdir, 1, 3, True)
    return workdir


def test_folds_and_warm_starts(folded):
    with open(folded / "folds.csv") as file:
        assignment = [int(row["fold"]) for row in csv.DictReader(file)]
    assert len(assignment) == 48 and np.bincount(assignment).tolist() == [16, 16, 16]
    for name in ("net1", "net1_dynamic"):
        for fold in range(3):
            folder = folded / name / f"fold{fold}"
            summary = json.loads((folder / "summary.json").read_text())
            assert summary["fold"] == fold and summary["examples"]["test"] == 16
            # The program of the first fold serves the others.
            assert (summary["compile_seconds"] > 0) == (fold == 0)
            config = json.loads((folder / "config.json").read_text())
            start = str(folded / "net1" / f"fold{fold}") if name == "net1_dynamic" else ""
            assert config["init_from"] == start


def test_frozen_start_keeps_the_trained_kernels(folded):
    static = restore_best_variables(folded / "net1" / "fold0")["params"]
    dynamic = restore_best_variables(folded / "net1_dynamic" / "fold0")["params"]
    # The noise of the candidates sums to zero, and frozen kernels do not learn.
    np.testing.assert_allclose(
        np.mean(dynamic["conv1"]["kernel"], axis=0), static["conv1"]["kernel"], atol=1e-5
    )
    assert not np.array_equal(dynamic["head"]["kernel"], static["head"]["kernel"])


def test_finished_runs_are_not_trained_again(folded, toy, capsys):
    before = (folded / "net1" / "fold0" / "summary.json").stat().st_mtime_ns
    run_study(load_toy_configs(toy, "net1_dynamic", "net1"), folded, 1, 3, True)
    assert capsys.readouterr().out.count("already finished") == 6
    assert (folded / "net1" / "fold0" / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="--folds=4"):
        run_study(load_toy_configs(toy, "net1"), folded, 1, 4, False)


def test_failed_run_is_reported_and_tried_again(toy, tmp_path, monkeypatch):
    train = grid.train

    def fail_for_seed_0(config, workdir, programs, **options):
        if config.seed == 0:
            raise RuntimeError("out of luck")
        return train(config, workdir, programs, **options)

    monkeypatch.setattr(grid, "train", fail_for_seed_0)
    run_study(load_toy_configs(toy, "net1"), tmp_path, 2, 0, False)
    assert (tmp_path / "net1/seed0/error.txt").read_text() == "RuntimeError: out of luck\n"
    assert "Traceback" in (tmp_path / "net1/seed0/traceback.txt").read_text()
    assert (tmp_path / "net1/seed1/summary.json").exists()
    assert "out of luck" in write_report([tmp_path], tmp_path).read_text()
    monkeypatch.setattr(grid, "train", train)
    run_study(load_toy_configs(toy, "net1"), tmp_path, 2, 0, False)
    assert not (tmp_path / "net1/seed0/error.txt").exists()
    assert (tmp_path / "net1/seed0/summary.json").exists()
