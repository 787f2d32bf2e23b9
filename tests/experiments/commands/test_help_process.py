"""Every command in its own process."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

COMMANDS = (
    "main", "study", "augmentation", "report", "predict", "embed", "generate", "export", "inspect",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name):
    line = [sys.executable, "-m", f"experiments.{name}", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m experiments.{name}" in done.stdout


def test_misspelt_flag():
    line = [sys.executable, "-m", "experiments.report", "runs", "--output=out"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "--out" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
