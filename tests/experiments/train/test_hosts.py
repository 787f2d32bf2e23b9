"""One run on other numbers of devices and of processes, which meet over gloo."""

import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from small_runs import (
    ROOT,
    assert_near_run,
    command,
    environment,
    rows,
    saved_state,
    small,
    write_series,
)

from experiments.configs import net2
from experiments.train.loop import train

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("compiled_once")]

SERIES = "ucr,name=Toy,smoke"
HEARTBEAT = 10
# A main that is slow to complete a checkpoint.
SLOW_WRITER = """
import time
from experiments import main
from experiments.core import cli
from experiments.runs.checkpoints import Checkpoints
write = Checkpoints._write_checksums
Checkpoints._write_checksums = lambda self: time.sleep(1) or write(self)
cli.run_command(main.main, main.__doc__)
"""
STOPPED = r"stopped after step (\d+) \(saved\); the same command continues there"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a network without batch norm and Adam, which amplify the last digits.

    It takes two hundred steps, so that a signal comes in time.
    """
    return {
        "data.source": write_series(tmp_path_factory.mktemp("ucr"), 320, 24),
        "data.limit": 320,
        "epochs": 5,
        "checkpoint_every": 50,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.01,
        "augment": "none",
    }


@pytest.fixture(scope="module")
def programs():
    """Programs compiled for the four devices of this process."""
    return {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, settings, programs):
    """The folder of an uninterrupted run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(small(net2, SERIES, **settings), workdir, programs)
    return workdir


@pytest.fixture
def start(compiled_once, settings):
    """Returns a function that starts the processes of one run."""
    started = []

    def begin(workdir, devices, number=1, program=("-m", "experiments.main"), **changes):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"--coordinator_address=localhost:{free.getsockname()[1]}"
        for index in range(number):
            place = [address, f"--num_processes={number}", f"--process_id={index}"]
            place.append(f"--heartbeat={HEARTBEAT}")
            python, _, _, *flags = command(workdir, "net2", SERIES, **settings | changes)
            started.append(
                subprocess.Popen(
                    [python, *program, *flags, *(place * (number > 1))],
                    cwd=ROOT,
                    env=environment(compiled_once, devices),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started[-number:]

    yield begin
    for process in started:
        process.kill()


def wait_for(workdir, step, *processes):
    """Returns when a run has logged a step."""
    deadline = time.monotonic() + 600
    while not any(row["step"] >= step for row in rows(workdir)):
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()
        assert time.monotonic() < deadline, "the run does not begin"
        time.sleep(0.01)


def stop(workdir, step, *processes):
    """Asks the last process to stop when a step is logged; returns the step after which all did."""
    wait_for(workdir, step, *processes)
    processes[-1].send_signal(signal.SIGTERM)
    steps = set()
    for process in processes:
        errors = process.communicate(timeout=180)[1]
        assert process.returncode == 128 + signal.SIGTERM, errors
        steps.add(int(re.search(STOPPED, errors)[1]))
    [step] = steps
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert not (workdir / "summary.json").exists()
    return step


def finish(*processes):
    for process in processes:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors


def assert_near(workdir, whole):
    assert_near_run(workdir, whole)
    last = max(row["step"] for row in rows(whole))
    ours, theirs = saved_state(workdir, last), saved_state(whole, last)
    assert ours.keys() == theirs.keys()
    for path, values in theirs.items():
        np.testing.assert_allclose(ours[path], values, rtol=1e-4, atol=1e-5, err_msg=path)


def test_two_processes_stop_after_the_same_step_and_one_process_continues(
    start, whole, settings, programs, tmp_path
):
    workdir = tmp_path / "run"
    step = stop(workdir, 3, *start(workdir, devices=2, number=2))
    logged = [row["step"] for row in rows(workdir) if row["split"] == "train"]
    assert logged == list(range(1, step + 1))  # by one of the two
    train(small(net2, SERIES, **settings), workdir, programs)
    assert_near(workdir, whole)


def assert_explained(errors, index):
    """The last line says what happened and what to do."""
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"error: Process {index} of ") and "another one" in last, errors
    assert "Start all of them again: the same command continues" in last, errors


@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_that_dies_while_the_other_saves_is_missed_by_name(start, tmp_path, victim):
    workdir = tmp_path / "run"
    program = ("-c", SLOW_WRITER)
    pair = start(workdir, devices=2, number=2, program=program, checkpoint_every=1)
    wait_for(workdir, 3, *pair)
    pair[victim].kill()
    errors = pair[1 - victim].communicate(timeout=HEARTBEAT + 50)[1]
    assert_explained(errors, 1 - victim)
    assert "make the folder writable" not in errors


@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_that_dies_ends_the_other_and_both_continue(start, whole, tmp_path, victim):
    workdir = tmp_path / "run"
    begun = stop(workdir, 10, *start(workdir, devices=4))
    pair = start(workdir, devices=2, number=2)
    wait_for(workdir, begun + 7, *pair)
    pair[victim].kill()
    # A loss that no sum notices is noticed by heartbeats, which process 0 keeps.
    errors = pair[1 - victim].communicate(timeout=HEARTBEAT + 10 if victim else 10)[1]
    # JAX may end this process inside C++; a sentence is the last line all the same.
    lost = f"error: Process {1 - victim} of 2 has lost another one" in errors
    assert pair[1 - victim].returncode == (2 if lost else -signal.SIGABRT), errors
    assert_explained(errors, 1 - victim)
    finish(*start(workdir, devices=2, number=2))
    assert_near(workdir, whole)


def test_a_run_continues_on_fewer_devices(start, whole, tmp_path):
    workdir = tmp_path / "run"
    assert 20 <= stop(workdir, 20, *start(workdir, devices=4))
    assert 50 <= stop(workdir, 50, *start(workdir, devices=2))
    finish(*start(workdir, devices=1))
    assert_near(workdir, whole)


def test_a_signal_before_the_first_step_stops_all_processes(start, tmp_path):
    workdir = tmp_path / "run"
    begun = stop(workdir, 10, *start(workdir, devices=4))
    pair = start(workdir, devices=2, number=2)
    deadline = time.monotonic() + 300
    while not (workdir / "lock").read_text().startswith(f"process {pair[0].pid} "):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # They have met, and compile.
    assert stop(workdir, 0, *pair) == begun + 1
