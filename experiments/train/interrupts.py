"""What ends a run from outside: Ctrl-C and SIGTERM, behind a step, and the loss of another process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from experiments.core.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# It reads until whoever started it has written something, or is gone.
_LISTENER = "import sys; sys.stdin.buffer.read() or print(sys.argv[1], file=sys.stderr, flush=True)"


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has done so.

    It is a KeyboardInterrupt, so that nothing that goes on after an error (as a study does) goes on
    after it.
    """

    def __init__(self, step: int, number: int):
        super().__init__(
            f"stopped behind step {step:,}, which is saved; the same command continues there"
        )
        self.exit_code = 128 + number


class Asked:
    """Which signal has come, if one has."""

    number: int | None = None
    early = False

    def by(self, step: int) -> int | None:
        """The signal because of which a run ends behind a step, or None; to be asked behind every step.

        Several processes agree on the step: a signal to one of them ends all, a few steps later.
        """
        if jax.process_count() == 1:
            return self.number
        if self.early or multihost_utils.reached_preemption_sync_point(step):
            return self.number or signal.SIGTERM
        return None


@contextlib.contextmanager
def noticed(start_step: int) -> Iterator[Asked]:
    """Notes the first SIGINT or SIGTERM for the time of a `with`; a second one ends the process at once.

    Signals reach the main thread alone: elsewhere nothing changes. With several processes SIGTERM is
    jax.distributed's, which notes it from the beginning on and tells the others.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: object) -> None:
        if asked.number is not None:
            os._exit(128 + number)
        asked.number = number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = SIGNALS
    if jax.process_count() > 1:
        numbers = (signal.SIGINT,)
        # Told before it was ever asked, JAX means step 1, wherever the run continues.
        asked.early = multihost_utils.reached_preemption_sync_point(1)
        multihost_utils.reached_preemption_sync_point(start_step)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def others_watched() -> Iterator[None]:
    """Turns what JAX says when another process of the run is gone into a sentence.

    Raises:
        UserError: instead of JAX's error, if there are several processes.
    """
    if jax.process_count() == 1:
        yield
        return
    this = f"process {jax.process_index()} of {jax.process_count()}"
    again = "Start all of them again: the same command continues from the last checkpoint."
    with last_words(
        f"error: {this} was ended at once. What stands above says why; another one that was lost is called "
        f"a task there. {again}"
    ):
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{this.capitalize()} has lost another one ({reason}). {again}"
            ) from error


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """Has a line printed if the process ends within a `with` without coming out of it.

    So `jax.distributed` ends a process when another one has missed its heartbeats, and gloo now and then when
    one is gone: in C++, by an abort, which no `except` sees. A small process waits for that, and prints.
    """
    command = [sys.executable, "-IS", "-c", _LISTENER, text]
    # In a session of its own Ctrl-C does not reach it.
    listener = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        listener.communicate(b"all said")
