"""Without the libraries of the laboratory, every command ends with one line that says what to install."""

import subprocess
import sys

import pytest
from small_runs import ROOT

pytestmark = pytest.mark.process

INSTALL = 'pip install "dynconv[experiments]"'


def run_bare(*words):
    """Runs Python without any installed package: (exit code, output, errors)."""
    line = [sys.executable, "-S", *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "experiments.main"],
        ["-m", "experiments.benchmarks.train_step", "--quick"],
        ["-c", "import sys; sys.argv[0] = '/bin/dyn'; import experiments.core.command_line"],
    ],
)
def test_a_command_names_the_extra_in_one_line(words):
    code, out, error = run_bare(*words)
    assert (code, out) == (2, "") and INSTALL in error and error.count("\n") == 1


def test_an_import_names_the_extra():
    code, _, error = run_bare("-c", "from experiments.load import load")
    assert code == 1 and error.splitlines()[-1].startswith("ImportError: ") and INSTALL in error
