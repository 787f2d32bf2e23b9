"""Processes that are killed in the middle, and started again with the same command."""

import random
import subprocess
import time

import pytest
from small_runs import ROOT, assert_same_run, command, environment, rows, small

from experiments.configs import base
from experiments.train.loop import train

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("compiled_once")]

EPOCH = 4  # steps, followed by an evaluation
CHANGES = {"average": 0.9, "epochs": 30}


def starting(workdir, chance):
    """Kills at any time, most likely before the first step."""
    end = time.monotonic() + chance.uniform(0, 4)
    return lambda: time.monotonic() > end


def training(workdir, chance):
    """At any time after some further steps."""
    before, later = log_of(workdir), chance.uniform(0, 0.3)
    number, end = chance.randint(1, 5), None

    def reached():
        nonlocal end
        if end is None and log_of(workdir) != before and trained(workdir) % number == 0:
            end = time.monotonic() + later
        return end is not None and time.monotonic() > end

    return reached


def evaluating(workdir, chance):
    """During an evaluation: the last step of an epoch is logged, its evaluation is not."""
    before, later = log_of(workdir), chance.uniform(0, 0.01)

    def reached():
        if log_of(workdir) == before or not trained(workdir, last=True) % EPOCH == 0:
            return False
        time.sleep(later)
        return True

    return reached


def writing(workdir, chance):
    """While a checkpoint is written: it still has a temporary name."""
    before, later = torn(workdir), chance.uniform(0, 0.02)

    def reached():
        if not torn(workdir) - before:
            return False
        time.sleep(later)
        return True

    return reached


def log_of(workdir):
    """Returns the inode of the metrics: a run that continues writes a new file, without later rows."""
    file = workdir / "metrics.jsonl"
    return file.stat().st_ino if file.exists() else None


def trained(workdir, last=False):
    """The step of the last row of training, or -1; with `last` only where no other row follows it."""
    found = rows(workdir)[-1:] if last else rows(workdir)
    return max((row["step"] for row in found if row["split"] == "train"), default=-1)


def torn(workdir):
    """The checkpoints that are not whole, and since when."""
    found = set()
    for folder in (workdir / "checkpoints").glob("*-tmp*"):
        try:
            found.add((folder.name, folder.stat().st_ctime_ns))
        except FileNotFoundError:  # it has just become whole
            continue
    return found


def test_a_run_killed_at_twenty_random_moments_continues_bit_for_bit(tmp_path, compiled_once):
    train(small(base, **CHANGES), tmp_path / "whole")
    workdir, chance = tmp_path / "killed", random.Random(1)
    moments = [starting] * 3 + [training] * 7 + [evaluating] * 5 + [writing] * 5
    chance.shuffle(moments)
    torn_checkpoints = torn_evaluations = 0
    for moment in (*moments, None):  # the last one comes to its end
        before, log = torn(workdir), log_of(workdir)
        process = subprocess.Popen(
            command(workdir, "base", **CHANGES),
            cwd=ROOT,
            env=environment(compiled_once),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            if moment:
                reached = moment(workdir, chance)
                while process.poll() is None and not reached():
                    time.sleep(0.001)
                process.kill()
            errors = process.communicate(timeout=600)[1].decode()
        finally:
            process.kill()
        assert process.returncode == (-9 if moment else 0), errors
        torn_checkpoints += bool(torn(workdir) - before)
        torn_evaluations += log_of(workdir) != log and trained(workdir, last=True) % EPOCH == 0
    assert torn_checkpoints >= 3 and torn_evaluations >= 3
    assert_same_run(workdir, tmp_path / "whole")
