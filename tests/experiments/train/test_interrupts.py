"""Signals, and processes that are lost."""

import os
import signal

import jax
import pytest

from experiments.core.errors import UserError
from experiments.train.interrupts import Stopped, explain_lost_process, handle_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step(number):
    before = signal.getsignal(number)
    with handle_signals(start_step=0) as stop:
        assert stop.signal_at(1) is None
        os.kill(os.getpid(), number)
        assert stop.signal_at(2) == number
    assert signal.getsignal(number) is before
    stopped = Stopped(2, number)
    assert stopped.exit_code == 128 + number and "after step 2 (saved)" in str(stopped)


def test_several_processes_agree_on_the_step(monkeypatch):
    asked = []

    def reached(step):
        asked.append(step)
        return step == 2

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", reached)
    with handle_signals(start_step=40) as stop:
        assert stop.signal_at(41) is None
        assert stop.signal_at(42) == signal.SIGTERM  # which another process has received
    assert asked == [1, 2]


def test_a_lost_process_becomes_a_sentence(monkeypatch):
    lost, full = (
        jax.errors.JaxRuntimeError(text)
        for text in (
            "UNKNOWN: Gloo all-reduce failed:\n reset by peer",
            "RESOURCE_EXHAUSTED: memory",
        )
    )
    with pytest.raises(jax.errors.JaxRuntimeError), explain_lost_process():
        raise lost  # one process has no others
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="Process 0 of 2 has lost another one"):
        with explain_lost_process():
            raise lost
    # Orbax's own words about the same.
    with pytest.raises(UserError, match=r"lost another one \(UNKNOWN: Gloo"):
        with explain_lost_process():
            raise TimeoutError("barrier") from lost
    with pytest.raises(TimeoutError, match="slow disk"), explain_lost_process():
        raise TimeoutError("slow disk")
    with pytest.raises(jax.errors.JaxRuntimeError), explain_lost_process():
        raise full
