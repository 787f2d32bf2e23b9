import csv
import json

import numpy as np
import pytest

from experiments.reports import study_figures
from experiments.reports.effects import measure_effects
from experiments.reports.report import write_report
from experiments.runs.find import read_run

GAINS = {"rate": {0.01: 0.0, 0.1: 0.02}, "norm": {"layer": 0.0, "none": -0.01}}


@pytest.fixture
def write_sweep(write_run):
    """Writes the runs of a sweep over two settings, with three seeds, and one of another config."""

    def write(gains=GAINS):
        folders = [write_run("base", 0.5)]
        for rate, gain in gains["rate"].items():
            for norm, more in gains["norm"].items():
                for seed in range(3):
                    accuracy = 0.8 + gain + more + seed / 100
                    best = {"step": 20, "accuracy": accuracy - 0.05, "loss": 1 - accuracy}
                    name = f"odconv,rate={rate},norm={norm}"
                    folder = write_run(name, accuracy, seed, best=best)
                    settings = json.loads((folder / "config.json").read_text())
                    settings["conv"] = {"name": "odconv", "attention_norm": norm}
                    settings["optimizer"] = {"learning_rate": rate}
                    settings["log_every"] = seed + 1
                    (folder / "config.json").write_text(json.dumps(settings))
                    folders.append(folder)
        return folders

    return write


def test_effects_are_those_of_the_pairs_that_differ_in_nothing_else(write_sweep):
    effects = measure_effects([read_run(folder) for folder in write_sweep()])
    found = {(one.setting, one.split, one.quantity): one for one in effects}
    assert len(found) == len(effects) == 6
    for quantity, split, sign in (
        ("metric", "validation", 1),
        ("loss", "validation", -1),
        ("metric", "test", 1),
    ):
        rate = found["optimizer.learning_rate", split, quantity]
        assert (rate.value, rate.reference, rate.pairs, rate.n) == ("0.1", "0.01", 6, 3)
        np.testing.assert_allclose((rate.mean, rate.error), (0.02 * sign, 0), atol=1e-12)
        norm = found["conv.attention_norm", split, quantity]
        assert (norm.value, norm.reference, norm.pairs, norm.n) == ("none", "layer", 6, 3)
        assert norm.mean == pytest.approx(-0.01 * sign)
        # Three equal signs out of three: p = 2 / 8; two tests of each quantity, equal ones.
        assert norm.p == pytest.approx(2 / 8) and norm.q == pytest.approx(2 / 8)


def test_runs_of_one_seed_are_not_independent(write_sweep):
    runs = []
    for folder in write_sweep()[1:]:
        summary = json.loads((folder / "summary.json").read_text())
        if "rate=0.1" in summary["config"]:  # the effect of 0.02 differs between seeds
            summary["test"]["accuracy"] += (0.01, 0.0, -0.04)[summary["seed"]]
            (folder / "summary.json").write_text(json.dumps(summary))
        runs.append(read_run(folder))
    (rate,) = (
        one
        for one in measure_effects(runs)
        if one.setting == "optimizer.learning_rate" and one.split == "test"
    )
    means = np.array([0.03, 0.02, -0.02])
    assert (rate.pairs, rate.n) == (6, 3) and rate.mean == pytest.approx(means.mean())
    assert rate.error == pytest.approx(means.std(ddof=1) / 3**0.5)
    assert rate.p == pytest.approx(0.75)  # ranks 3, 1.5 and -1.5: two of eight sums lie nearer to 0


def test_seeds_and_folds_are_no_settings(write_sweep):
    folders = write_sweep()[1:]
    for folder in folders:
        settings = json.loads((folder / "config.json").read_text())
        settings |= {"seed": 0, "data": {"fold": settings["seed"]}}
        (folder / "config.json").write_text(json.dumps(settings))
        summary = json.loads((folder / "summary.json").read_text())
        summary |= {"seed": 0, "fold": summary["seed"]}
        (folder / "summary.json").write_text(json.dumps(summary))
    effects = measure_effects([read_run(folder) for folder in folders])
    assert {(one.setting, one.pairs, one.n) for one in effects} == {
        ("conv.attention_norm", 6, 3),
        ("optimizer.learning_rate", 6, 3),
    }


def test_one_setting_alone_is_in_the_table_of_results(write_sweep):
    folders = write_sweep({**GAINS, "norm": {"layer": 0.0}})
    assert measure_effects([read_run(folder) for folder in folders]) == []


def test_the_start_from_another_config_is_a_setting(write_sweep):
    folders = write_sweep()
    for folder in folders[1:]:
        settings = json.loads((folder / "config.json").read_text())
        warm = settings["conv"].pop("attention_norm") == "none"
        first = f"base,from=none,learning_rate={settings['optimizer']['learning_rate']}"
        settings["start"] = {"config": first if warm else ""}
        settings["init_from"] = f"runs/base/seed{settings['seed']}" if warm else ""
        (folder / "config.json").write_text(json.dumps(settings))
    effects = measure_effects([read_run(folder) for folder in folders])
    assert {one.setting: one.pairs for one in effects} == {
        "optimizer.learning_rate": 6,
        "start.config": 6,
    }


def test_a_report_has_them_as_table_and_figure(write_sweep, tmp_path):
    folders = write_sweep()
    report = write_report(folders, tmp_path / "report").read_text()
    assert "effects of settings, all others being equal" in report
    assert "| conv.attention_norm | none instead of layer | 6 | 3 | −1.00 ± 0.00 |" in report
    assert "after ±, its standard error" in report and "fewer than 6 seeds or folds" in report
    assert (tmp_path / "report" / "figures" / "effects.png").is_file()
    with open(tmp_path / "report" / "effects.csv", newline="") as file:
        norm, rate = csv.DictReader(file)
    assert norm["change"] == "conv.attention_norm=none instead of layer" and norm["pairs"] == "6"
    assert norm["replicates"] == "3"
    assert float(rate["validation_loss_mean"]) == pytest.approx(-0.02)
    write_report(folders[:1], tmp_path / "report")
    assert not (tmp_path / "report" / "effects.csv").exists()


def test_without_effects_nothing_is_drawn(write_run, compare, tmp_path):
    assert not study_figures.draw_effects(compare(write_run()), [], tmp_path / "figure.png")
