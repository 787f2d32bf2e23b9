"""Libraries that are not installed are named with the extra that has them."""

import importlib.util

import pytest

from experiments.core import cli, extras


def test_the_laboratory_is_complete_here():
    assert extras.explain_missing_laboratory() == ""


def test_missing_libraries_of_the_laboratory_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "PIL" else "")
    sentence = extras.explain_missing_laboratory()
    assert "(PIL)" in sentence and 'pip install "dynconv[experiments]"' in sentence


@pytest.mark.parametrize(
    ("module", "extra"),
    [("orbax.checkpoint", "experiments"), ("librosa", "audio"), ("onnxruntime", "onnx")],
)
def test_a_command_names_the_extra_of_a_missing_module(module, extra, capsys):
    def main() -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    assert cli.run(main, ["command"], "") == 2
    error = capsys.readouterr().err
    assert f'pip install "dynconv[{extra}]"' in error and error.count("\n") == 1


def test_a_module_of_no_extra_keeps_its_traceback():
    def main() -> None:
        raise ModuleNotFoundError("No module named 'mine'", name="mine")

    with pytest.raises(ModuleNotFoundError):
        cli.run(main, ["command"], "")
