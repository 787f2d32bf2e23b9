"""Commands in processes of their own end with 2 and one line after a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import main as command

pytestmark = pytest.mark.process
ROOT = Path(command.__file__).parents[1]
ODCONV = "--config=experiments/configs/odconv.py:smoke"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["main", ODCONV, "--config.epochs=None", "--debug"], "whole number"),
        (["study", "--configs=bas"], "'base'"),
        (["report", "/nowhere"], "/nowhere"),
        (["report", "{runs}", "--out={runs}/file"], "cannot be written"),
        (["report", "{runs}", "--out"], "out"),
        (["benchmarks.train_step", "--layers=odcnv"], "'odconv'"),
    ],
)
def test_a_real_process_ends_with_2_and_says_what_is_wrong(words, says, tmp_path, the_line):
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "error.txt").write_text("out of luck")
    module, *words = (word.replace("{runs}", str(tmp_path)) for word in words)
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    *trace, line = done.stderr.splitlines(keepends=True)
    assert says in the_line(line)
    assert bool(trace) == ("--debug" in words)
