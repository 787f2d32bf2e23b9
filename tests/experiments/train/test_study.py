"""Studies up to where they would train; see test_study_matrix.py for small ones that do."""

import pytest

from experiments.configs.shared.overrides import sweep
from experiments.core.errors import UserError
from experiments.runs.folder import InUseError
from experiments.train import control, grid, study
from experiments.train.grid import load_config


def load_configs(*names, dataset="digits,smoke"):
    return [load_config(name, dataset) for name in names]


def test_runs_that_others_start_from_come_first(tmp_path):
    configs = load_configs("net1_dynamic", "net1", dataset="adiac")
    runs = list(study.plan_runs(configs, tmp_path, 1, 2))
    folders = [str(run.workdir.relative_to(tmp_path)) for run in runs]
    assert folders == [f"{name}/fold{k}" for name in ("net1", "net1_dynamic") for k in (0, 1)]
    assert [(run.config.data.fold, run.config.data.folds) for run in runs] == [(0, 2), (1, 2)] * 2
    starts = [run.config.init_from for run in runs]
    assert starts == ["", "", str(tmp_path / "net1/fold0"), str(tmp_path / "net1/fold1")]
    runs = list(study.plan_runs(configs[1:], tmp_path, 3, 0))
    assert [run.config.seed for run in runs] == [0, 1, 2]


def test_failed_runs(tmp_path, monkeypatch, capsys):
    failing = {0}

    def attempt_run(run, programs, brief):
        run.workdir.mkdir(parents=True, exist_ok=True)
        (run.workdir / "error.txt").write_text("out of luck")
        return run.config.seed not in failing

    monkeypatch.setattr(study, "attempt_run", attempt_run)
    study.run_study(load_configs("base"), tmp_path, 2, 0, False)
    assert "1 of 2 runs failed" in capsys.readouterr().out
    failing.add(1)
    with pytest.raises(UserError, match=r"All 2 runs failed.*out of luck"):
        study.run_study(load_configs("base"), tmp_path, 2, 0, False)


def test_a_start_that_has_failed_or_is_not_finished_is_not_started_from(tmp_path, monkeypatch):
    trained, unfinished = [], {0, 1}

    def train(config, workdir, programs, **options):
        trained.append(str(workdir.relative_to(tmp_path)))
        if config.name == "base,from=none" and config.seed in unfinished:
            (workdir / "checkpoints/20").mkdir(parents=True, exist_ok=True)
            raise UserError("The loss is nan.")
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "summary.json").write_text("{}")

    monkeypatch.setattr(grid, "train", train)
    configs = sweep(load_configs("base"), {"start.config": ["", "base"]})
    with pytest.raises(UserError, match=r"All 2 runs failed\..*nan"):
        study.run_study(configs, tmp_path, 1, 0, False)
    assert trained == ["base,from=none/seed0"]
    note = tmp_path / "base,from=base/seed0/error.txt"
    assert note.read_text().startswith("Its start, base,from=none/seed0, has failed;")
    # Another process trains it.
    (tmp_path / "base,from=none/seed0/error.txt").unlink()
    run = list(study.plan_runs(configs, tmp_path, 1, 0))[1]
    assert not grid.attempt_run(run, {}) and "is not finished" in note.read_text()
    unfinished.clear()
    study.run_study(configs, tmp_path, 1, 0, False)
    assert trained[1:] == ["base,from=none/seed0", "base,from=base/seed0"] and not note.exists()


def test_a_run_of_another_process_has_failed_here(tmp_path, monkeypatch, capsys):
    def attempt_run(run, programs, brief):
        if run.config.seed == 0:
            raise InUseError("seed0 is in use")
        return True

    monkeypatch.setattr(study, "attempt_run", attempt_run)
    study.run_study(load_configs("base"), tmp_path, 2, 0, False)
    out = capsys.readouterr().out
    assert "failed: seed0 is in use" in out and "1 of 2 runs failed" in out
    with pytest.raises(UserError, match="printed above"):
        study.run_study(load_configs("base"), tmp_path, 1, 0, False)


def test_headers_of_many_runs_are_short_and_say_how_long_the_rest_takes(
    tmp_path, monkeypatch, capsys
):
    headers = []

    def attempt_run(run, programs, brief):
        headers.append(not brief)
        now[0] += 90
        return True

    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(study, "attempt_run", attempt_run)
    study.run_study(load_configs("base"), tmp_path, 3, 0, False)
    assert headers == [True, False, False]
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        "run 1 of 3: base/seed0",
        "run 2 of 3: base/seed1, ETA 3:00",
        "run 3 of 3: base/seed2, ETA 1:30",
    ]


@pytest.mark.parametrize(
    ("name", "dataset", "folds", "fragment"),
    [
        ("net1_dynamic", "adiac", 0, "add net1 to --configs"),
        ("base", "digits", 1, "folds"),
        ("birdsong_classifier", "songs", 3, "fold"),
    ],
)
def test_mistakes_before_training(tmp_path, name, dataset, folds, fragment):
    with pytest.raises(UserError, match=fragment):
        study.run_study([load_config(name, dataset)], tmp_path / "none", 1, folds, False)
    assert not (tmp_path / "none").exists()


def test_control_has_the_parameters_of_the_largest_network():
    configs = load_configs("base", "odconv", "global_soft")
    equal = control.make_control(configs)
    target = control.count_config_parameters(configs[1])
    assert control.count_config_parameters(equal) >= target
    narrower = control.widen(configs[0], equal.model.width - 1)
    assert control.count_config_parameters(narrower) < target
    assert equal.name == f"base_w{equal.model.width}" and equal.baseline == "base"
    assert control.make_control([configs[0], configs[2]]) is None
    assert control.make_control(configs[1:2]) is None


@pytest.mark.parametrize("name", ["dr_acgan", "soundscape_autoencoder"])
def test_networks_without_a_width_have_no_control(name, monkeypatch):
    sizes = {"conv": 100, "dyconv": 200}
    monkeypatch.setattr(control, "count_config_parameters", lambda config: sizes[config.conv.name])
    static, dynamic = load_configs(name, name)
    dynamic.conv.name = "dyconv"
    assert control.make_control([static, dynamic]) is None
