"""The study on toy series and digits: plan, folds, warm starts, failures, control, report."""

import csv
import json

import jax
import numpy as np
import pytest

from experiments import study
from experiments.configs import base, hard
from experiments.configs.shared.overrides import has_setting, override, split_override, sweep
from experiments.core.errors import UserError
from experiments.data import load
from experiments.train import grid as planned
from experiments.train.loop import train

pytestmark = pytest.mark.usefixtures("compiled_once")

TINY = {
    "epochs": 1,
    "batch_size": 8,
    "log_every": 1,
    "temperature.epochs": 1,
    "series.features": 4,
    "series.bins": 4,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A UCR set of two classes: 48 series of 24 samples."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("ucr") / "Toy"
    folder.mkdir()
    for part in ("TRAIN", "TEST"):
        table = rng.normal(size=(24, 25))
        table[:, 0] = np.arange(24) % 2 + 1
        np.savetxt(folder / f"Toy_{part}.tsv", table, delimiter="\t", fmt="%.4f")
    return str(folder)


def toy_configs(toy, *names):
    configs = [study.load_config(name, "ucr,name=Toy", toy) for name in names]
    for config in configs:
        shrink(config)
    return configs


def shrink(config):
    for path, value in TINY.items():
        if has_setting(config, path):
            override(config, path, value)


@pytest.fixture(scope="module")
def folded(compiled_once, toy, tmp_path_factory):
    """Net1, static and then dynamic from it, on three folds."""
    workdir = tmp_path_factory.mktemp("study") / "toy"
    study.run_study(toy_configs(toy, "net1_dynamic", "net1"), workdir, 1, 3, True)
    return workdir


def test_every_fold_is_tested_once_and_the_dynamic_network_starts_from_the_static_one(folded):
    with open(folded / "folds.csv") as file:
        assignment = [int(row["fold"]) for row in csv.DictReader(file)]
    assert len(assignment) == 48 and np.bincount(assignment).tolist() == [16, 16, 16]
    for name in ("net1", "net1_dynamic"):
        for fold in range(3):
            folder = folded / name / f"fold{fold}"
            summary = json.loads((folder / "summary.json").read_text())
            assert summary["fold"] == fold and summary["examples"]["test"] == 16
            # Compiled for the first fold alone.
            assert (summary["compile_seconds"] > 0) == (fold == 0)
            config = json.loads((folder / "config.json").read_text())
            start = str(folded / "net1" / f"fold{fold}") if name == "net1_dynamic" else ""
            assert config["init_from"] == start


def test_a_frozen_start_keeps_the_trained_kernels(folded):
    from experiments.runs.checkpoints import restore_best_variables

    static = restore_best_variables(folded / "net1" / "fold0")["params"]
    dynamic = restore_best_variables(folded / "net1_dynamic" / "fold0")["params"]
    # The candidates' noise adds up to nothing, and neither learned.
    np.testing.assert_allclose(
        np.mean(dynamic["conv1"]["kernel"], axis=0), static["conv1"]["kernel"], atol=1e-5
    )
    assert not np.array_equal(dynamic["head"]["kernel"], static["head"]["kernel"])


def test_the_report_compares_them(folded):
    text = (folded / "report.md").read_text()
    assert "net1_dynamic" in text and "fold 2" in text
    assert (folded / "report.csv").exists() and (folded / "report.tex").exists()
    assert {"curves.png", "per_run.png"} <= {file.name for file in (folded / "figures").iterdir()}


def test_a_study_that_is_finished_trains_nothing_anew(folded, toy, capsys):
    before = (folded / "net1" / "fold0" / "summary.json").stat().st_mtime_ns
    study.run_study(toy_configs(toy, "net1_dynamic", "net1"), folded, 1, 3, True)
    assert capsys.readouterr().out.count("already finished") == 6
    assert (folded / "net1" / "fold0" / "summary.json").stat().st_mtime_ns == before


def test_other_folds_want_another_workdir(folded, toy):
    with pytest.raises(UserError, match="other folds than --folds=4"):
        study.run_study(toy_configs(toy, "net1"), folded, 1, 4, False)


def test_a_run_that_fails_is_reported_and_the_others_go_on(toy, tmp_path, monkeypatch):
    real = planned.train

    def train_but_for_one(config, workdir, programs):
        if config.seed == 0:
            raise RuntimeError("out of luck")
        return real(config, workdir, programs)

    monkeypatch.setattr(planned, "train", train_but_for_one)
    study.run_study(toy_configs(toy, "net1"), tmp_path, 2, 0, False)
    assert (tmp_path / "net1/seed0/error.txt").read_text() == "RuntimeError: out of luck\n"
    assert "Traceback" in (tmp_path / "net1/seed0/traceback.txt").read_text()
    assert (tmp_path / "net1/seed1/summary.json").exists()
    assert "out of luck" in (tmp_path / "report.md").read_text()
    # The next time it is tried again.
    monkeypatch.setattr(planned, "train", real)
    study.run_study(toy_configs(toy, "net1"), tmp_path, 2, 0, False)
    assert not (tmp_path / "net1/seed0/error.txt").exists()
    assert (tmp_path / "net1/seed0/summary.json").exists()


def test_the_control_has_the_parameters_of_the_largest_network():
    configs = [
        study.load_config(name, "digits,smoke") for name in ("base", "odconv", "global_soft")
    ]
    (control,) = study.make_control(configs)
    wanted = study.parameters_of(configs[1])
    assert study.parameters_of(control) >= wanted
    assert study.parameters_of(study.widened(configs[0], control.model.width - 1)) < wanted
    assert control.name == f"base_w{control.model.width}" and control.baseline == "base"
    assert study.make_control([configs[0], configs[2]]) == []
    assert study.make_control(configs[1:2]) == []


@pytest.mark.parametrize("name", ["dr_acgan", "soundscape_autoencoder"])
def test_what_is_not_as_wide_as_the_model_s_width_has_no_control(name, monkeypatch):
    sizes = {"conv": 100, "dyconv": 200}
    monkeypatch.setattr(study, "parameters_of", lambda config: sizes[config.conv.name])
    static, dynamic = (study.load_config(name, "digits,smoke") for _ in range(2))
    dynamic.conv.name = "dyconv"
    assert study.make_control([static, dynamic]) == []


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: study.load_config("odcon", "digits"), "no config odcon; did you mean 'odconv'?"),
        (
            lambda: study.load_config("base", "digits", "", {"epoch": 3}),
            "did you mean 'epochs'?",
        ),
        (
            lambda: study.load_config("base", "digits", "", {"model.wdth": 3}),
            "did you mean 'width'?",
        ),
        (lambda: study.load_config("base", "digits", "", {"epochs": "x"}), "--override=epochs=x: "),
        (lambda: split_override("epochs", "--override"), "write KEY=VALUE, such as epochs=5."),
        (
            lambda: study.run_study(
                [study.load_config("net1_dynamic", "adiac")], None, 1, 0, False
            ),
            "net1_dynamic starts from a trained net1: add net1 to --configs.",
        ),
        (
            lambda: study.run_study(
                [study.load_config("birdsong_classifier", "songs")], None, 1, 3, False
            ),
            "there is no setting 'fold'",
        ),
    ],
)
def test_mistakes_are_answered_before_anything_is_trained(call, says):
    with pytest.raises(UserError) as error:
        call()
    assert says in str(error.value)


def test_a_sweep_is_every_config_with_every_combination_of_values():
    configs = [study.load_config(name, "adiac") for name in ("net1", "net1_dynamic")]
    configs[1].baseline = "net1"
    grid = {"optimizer.learning_rate": ["1e-3", "3e-3"], "epochs": ["5"]}
    swept = sweep(configs, grid)
    said = [f",learning_rate={rate},epochs=5" for rate in grid["optimizer.learning_rate"]]
    assert [c.name for c in swept] == [c.name + values for c in configs for values in said]
    assert [c.optimizer.learning_rate for c in swept] == [1e-3, 3e-3, 1e-3, 3e-3]
    assert {c.epochs for c in swept} == {5} and configs[0].epochs != 5
    # Each is compared with, and starts from, what has the same values.
    assert [c.baseline for c in swept[2:]] == [c.name for c in swept[:2]]
    assert [c.start.config for c in swept[2:]] == [c.name for c in swept[:2]]
    assert sweep(configs, {}) == configs


def test_a_config_without_a_swept_setting_is_there_once():
    configs = [study.load_config(name, "digits") for name in ("base", "odconv")]
    swept = sweep(configs, {"temperature.start": ["10", "20"]})
    assert [c.name for c in swept] == ["base", "odconv,start=10", "odconv,start=20"]
    assert {c.baseline for c in swept} == {"base"}


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"epochs": ["5", "x"]}, "--sweep=epochs=x: it is not a whole number"),
        ({"epoch": ["5"]}, "did you mean 'epochs'?"),
        ({"epochs": ["5", "5"]}, "every value once"),
    ],
)
def test_a_sweep_over_nonsense_is_refused(grid, says):
    with pytest.raises(UserError) as error:
        sweep([study.load_config("base", "digits")], grid)
    assert says in str(error.value)


def test_gates_are_adapted_from_one_half_of_the_digits_to_the_other(tmp_path, capsys):
    def halves(classes, **changes):
        config = hard.get_config("smoke")
        shrink(config)
        config.update_from_flattened_dict({"data.classes": classes, **changes})
        return config

    first = train(halves("0,1,2,3,4"), tmp_path / "first")
    adapted = halves("5,6,7,8,9", adapt_gates=True, **{"init_from": str(tmp_path / "first")})
    second = train(adapted, tmp_path / "second")
    assert "parameters taken over" in capsys.readouterr().out
    assert first["parameters"] == second["parameters"]
    from experiments.runs.checkpoints import restore_best_variables

    before, after = (
        restore_best_variables(tmp_path / name)["params"] for name in ("first", "second")
    )
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, before, after))
    for path, same in leaves:
        names = [key.key for key in path]
        assert same == ("attention" not in names), names


def test_adapting_gates_wants_gates_and_a_trained_network():
    for config in (base.get_config("smoke"), hard.get_config("smoke")):
        config.adapt_gates = True
        with pytest.raises(
            UserError, match="adapt_gates fine-tunes the gates of a trained network"
        ):
            study.resolve_config(config)


def test_only_some_classes_are_numbered_anew():
    config = base.get_config("digits").data
    config.classes = "7,3"
    dataset = load(config, 0)
    assert list(dataset.classes) == ["7", "3"]
    everything = load(base.get_config("digits").data, 0)
    for split, source in dataset.splits.items():
        labels = [int(source[i]["label"]) for i in range(len(source))]
        assert set(labels) == {0, 1}
        whole = everything.splits[split]
        old = [int(whole[i]["label"]) for i in range(len(whole))]
        assert labels.count(0) == old.count(7) and labels.count(1) == old.count(3)
    config.classes = "7,eleven"
    with pytest.raises(
        UserError, match=r"--config.data.classes: there is no eleven; there are 0, 1,"
    ):
        load(config, 0)
