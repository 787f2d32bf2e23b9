"""The command as a process: signals, the lock of a workdir, exit codes."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from small_runs import ROOT

from experiments.core.errors import UserError
from experiments.runs.folder import lock_workdir

pytestmark = pytest.mark.process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_saves_its_step_after_a_signal(tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.main", f"--workdir={workdir}"),
            *("--config=experiments/configs/base.py:smoke", "--config.epochs=100000"),
            *("--config.model.width=4", "--config.early_stopping.patience=0"),
        ],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 600
        rows = workdir / "metrics.jsonl"
        while not (rows.exists() and rows.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 128 + number, (out, err)
    # Nothing else either: no warnings of the libraries, no complaints of threads at the end.
    words = r"\nstopped after step ([\d,]+) \(saved\); the same command continues there\n"
    step = int(re.fullmatch(words, err)[1].replace(",", ""))
    assert step == max(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_a_workdir_is_locked_until_its_process_ends(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, pathlib, experiments.runs.folder as w\n"
            "with w.lock_workdir(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(100)",
            str(tmp_path),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {holder.pid} on "),
            lock_workdir(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with lock_workdir(tmp_path):
        pass


def test_a_process_ends_with_2_and_one_line_after_a_mistake():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.main", "--config=experiments/configs/odcon.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean 'odconv'?" in done.stderr
