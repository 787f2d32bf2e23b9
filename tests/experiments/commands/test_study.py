import pytest

from experiments import study
from experiments.core import cli


@pytest.fixture
def trained(monkeypatch, write_run):
    """The arguments of `run_study`, which leaves a finished run."""
    calls = []

    def run_study(*arguments):
        calls.append(arguments)
        write_run()

    monkeypatch.setattr(study, "run_study", run_study)
    monkeypatch.setattr(cli, "keep_compiled", lambda: None)
    return calls


def test_study(trained, tmp_path, capsys):
    workdir = tmp_path / "runs"
    words = ["--configs=base,odconv", "--seeds=2", "--override=epochs=5", "--control=False"]
    words += ["--override=temperature.start=10", "--sweep=batch_size=8,16"]
    assert cli.run(study.main, ["study", *words, f"--workdir={workdir}"], study.__doc__) == 0
    ((configs, *rest),) = trained
    assert rest == [workdir, 2, 0, False, False]
    assert [config.name for config in configs] == [
        f"{name},batch_size={size}" for name in ("base", "odconv") for size in (8, 16)
    ]
    assert {config.epochs for config in configs} == {5}
    assert configs[2].temperature.start == 10  # `base` has no such setting
    assert "| base |" in (workdir / "report.md").read_text()
    assert str(workdir / "report.md") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], "study-digits"),
        (["--dataset=digits,smoke"], "study-digits-smoke"),
        (["--dataset=ucr,name=Toy"], "study-toy"),
        (["--dataset=adiac", "--folds=2"], "study-adiac"),
    ],
)
def test_the_folder_is_named_by_the_data_set(trained, monkeypatch, words, folder):
    monkeypatch.setattr(study, "write_report", lambda runs, out: None)
    assert cli.run(study.main, ["study", "--configs=base:recipe=strong", *words], "") == 0
    ((configs, workdir, seeds, *_),) = trained
    assert str(workdir) == f"runs/{folder}" and seeds == 1
    assert [config.name for config in configs] == ["base"]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--configs="], "name one or more"),
        (["--configs=base,base"], "each of them once"),
        (["--configs=odcon"], "odconv"),
        (["--configs=../main"], "no config"),
        (["--override=epochs"], "KEY=VALUE"),
        (["--override==1"], "no setting"),
        (["--override=epoch=3"], "epochs"),
        (["--override=epochs=1.5"], "not a whole number"),
        (["--override=epochs=" + "9" * 5000], "epochs"),
        (["--override=optimizer=adam"], "group of settings"),
        (["--override=optimizer.lerning_rate=1"], "'learning_rate'"),
        (["--override=epochs.x=1"], "one setting"),
        (["--override=head.name=fcn"], "no setting 'head'"),
        (["--sweep=epochs=5,5"], "once"),
        (["--source=/nowhere"], "no setting 'source'"),
        (["--dataset=digts"], "'digits'"),
        (["--seeds=0"], "--seeds"),
        (["--folds=-1"], "folds"),
        (["--folds=2", "--seeds=1"], "give one of them"),
        (["--configs=base,base:recipe=strong"], "more than one is called base"),
        (["--override=seed=5"], "--seeds=N"),
        (["--override=name=x"], "names of the configs"),
        (["--override=data.fold=1"], "--folds=N"),
        (["--sweep=data.folds=2,3"], "--folds=N"),
        (["--sweep=seed=1,2"], "--seeds=N"),
        (["--sweep=epochs=5,10", "--sweep=epochs=20"], "set twice"),
        (["--sweep=epochs=5,10", "--override=epochs=20"], "set twice"),
        (["--sweep=model.depth=10,18", "--override=model.network=mobilenet_v2"], "'depth'"),
        (["--override=model.depth=10", "--override=model.network=mobilenet_v2"], "'depth'"),
    ],
)
def test_mistakes(trained, capsys, the_line, words, fragment):
    assert cli.run(study.main, ["study", *words], study.__doc__) == 2
    assert fragment in the_line(capsys.readouterr().err) and trained == []


def test_values_are_read_as_the_setting_s_type():
    config = study.load_config("base", "digits", {"data.classes": "0,1", "epochs": "3"})
    assert config.data.classes == "0,1" and config.epochs == 3
    wide = study.load_config("base", "digits", {"normalise.mean": "[0.1]", "average": "1"})
    assert wide.normalise.mean == (0.1,) and wide.average == 1.0
