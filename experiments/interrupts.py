"""Ctrl-C and SIGTERM: a run ends behind the step that it is in, with a checkpoint."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


@contextlib.contextmanager
def noticed() -> Iterator[Asked]:
    """Notes the first SIGINT or SIGTERM for the time of a `with`; a second one ends the process at once.

    Signals reach the main thread alone: elsewhere nothing changes. Nor does it with several hosts, which
    would stop at different steps.
    """
    asked = Asked()
    main = threading.current_thread() is threading.main_thread()
    if not main or jax.process_count() > 1:
        yield asked
        return

    def note(number: int, frame: object) -> None:
        if asked.number is not None:
            os._exit(128 + number)
        asked.number = number

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
