"""Ends a run cleanly: after Ctrl-C or SIGTERM, and when another of its processes is lost."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from experiments.core.errors import UserError
from experiments.core.hosts import find_lost_process

START_AGAIN = "Start all of them again: the same command continues from the last checkpoint."


class Stopped(KeyboardInterrupt):
    """Raised when a run has stopped because of a signal, and its last step is saved.

    It is a KeyboardInterrupt, so that a study, which goes on after the error of one run, ends too.
    """

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped after step {step:,} (saved); the same command continues there")
        self.exit_code = 128 + number


class StopRequest:
    """The signal that asks a run to stop, once one has arrived."""

    def __init__(self, start_step: int):
        """Starts without a request; `start_step` is the step from which the run continues."""
        self.number: int | None = None
        self._start_step = start_step

    def signal_at(self, step: int) -> int | None:
        """Returns the signal that ends the run after this step, or None; call it after every step.

        Several processes agree on the step: a signal to one of them ends all, a few steps later.
        """
        if jax.process_count() == 1:
            return self.number
        # JAX counts steps from 1: for a signal that arrives before the first call it agrees on step 1.
        if multihost_utils.reached_preemption_sync_point(step - self._start_step):
            return self.number or signal.SIGTERM
        return None


@contextlib.contextmanager
def handle_signals(start_step: int) -> Iterator[StopRequest]:
    """Records the first SIGINT or SIGTERM during a `with`; a second one ends the process at once.

    Only the main thread can handle signals; in other threads nothing changes. With several processes,
    jax.distributed handles SIGTERM from the start and tells the other processes.
    """
    request = StopRequest(start_step)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    several = jax.process_count() > 1

    def record(number: int, frame: object) -> None:
        if request.number is not None:
            os._exit(128 + number)
        request.number = number
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    handled = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, record) for number in handled}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turns JAX's error about another lost process of the run into a UserError.

    Some losses abort this process inside C++, where no `except` runs: see `announce_abrupt_end`.
    """
    try:
        yield
    except Exception as error:  # Orbax's own among them, with JAX's for a cause
        lost = find_lost_process(error)
        if lost is None:
            raise
        reason = " ".join(str(lost).split())[:200]
        raise UserError(
            f"Process {jax.process_index()} of {jax.process_count()} has lost another one ({reason}), whose "
            f"last line may say why. {START_AGAIN}"
        ) from error


@contextlib.contextmanager
def announce_abrupt_end(index: int | None) -> Iterator[None]:
    """Has the last word if process `index` of a run is killed or aborts inside C++ during a `with`.

    JAX aborts where it learns of a lost process outside of Python's calls. A shell waits for the end of this
    process, and prints a sentence unless it is told before that Python can speak for itself.
    """
    process = "A process" if index is None else f"Process {index}"
    sentence = (
        f"error: {process} of this run was killed, or JAX has ended it because another one is lost, whose "
        f"last line may say why. {START_AGAIN}"
    )
    shell = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r line || echo "$0" >&2', sentence],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process alone
    )
    try:
        yield
    finally:
        shell.communicate(b"\n")
