"""The console script `dyn`: a line for each command, which runs as `python -m` does."""

import sys

import pytest

import dyn
from experiments.core import command_line

FILES = {path.stem for path in command_line.FOLDER.glob("*.py")}


def test_every_command_is_listed(capsys):
    assert set(command_line.MODULES.values()) == FILES - {"__init__", "load"}
    for words in ([], ["--help"], ["-h"]):
        assert command_line.run(words) == 0
        page = capsys.readouterr().out
        assert "Trains one experiment" in page
        assert all(f"\n  {name} " in page for name in (*command_line.MODULES, "benchmark"))


def test_the_version_is_that_of_the_library(capsys):
    assert command_line.run(["--version"]) == 0
    assert capsys.readouterr().out == f"dynconv {dyn.__version__}\n"


def test_benchmarks_are_listed(capsys):
    assert command_line.run(["benchmark"]) == 0
    page = capsys.readouterr().out
    assert "  train_step " in page and "compiled_step" not in page and "options" not in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "'train'"),
        (["Train", "--config=base"], "'train'"),
        (["benchmark", "trainstep"], "'train_step'"),
    ],
)
def test_an_unknown_command_is_answered(words, says, capsys):
    assert command_line.run(words) == 2
    out, error = capsys.readouterr()
    assert not out and says in error and error.count("\n") == 1


def test_a_command_gets_the_words_after_its_name(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["dyn", "report", str(tmp_path / "nothing")])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # run_command sets it
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 2 and "nothing" in capsys.readouterr().err
