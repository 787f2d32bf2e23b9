"""Ends a run cleanly: after Ctrl-C or SIGTERM, and when another of its processes is lost."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from experiments.core.errors import UserError


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

    Some losses abort this process inside C++, where no `except` runs: then JAX's own message is the last.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"Process {jax.process_index()} of {jax.process_count()} has lost another one ({reason}). "
            "Start all of them again: the same command continues from the last checkpoint."
        ) from error
