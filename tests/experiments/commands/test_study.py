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
    assert rest == [workdir, 2, 0, False]
    assert [config.name for config in configs] == [
        f"{name},batch_size={size}" for name in ("base", "odconv") for size in (8, 16)
    ]
    assert {config.epochs for config in configs} == {5}
    assert configs[2].temperature.start == 10  # `base` has no such setting
    assert "| base |" in (workdir / "report.md").read_text()
    assert str(workdir / "report.md") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "fragment"),
    [
        ("--configs=odcon", "odconv"),
        ("--configs=base,base", "each of them once"),
        ("--override=epoch=3", "epochs"),
        ("--override=epochs=x", "whole number"),
        ("--override=epochs", "KEY=VALUE"),
        ("--sweep=epochs=5,5", "once"),
        ("--seeds=0", "--seeds"),
    ],
)
def test_mistakes(trained, capsys, word, fragment):
    assert cli.run(study.main, ["study", word], study.__doc__) == 2
    assert fragment in capsys.readouterr().err and trained == []
