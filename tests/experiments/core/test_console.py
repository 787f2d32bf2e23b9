import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core.console import (
    Progress,
    format_seconds,
    format_value,
    print_facts,
    print_result,
)


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which tests advance."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("time.monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def terminal(monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "1", "COLUMNS": "90"}.items():
        monkeypatch.setenv(name, value)


def test_log_file_gets_a_line_every_ten_seconds(clock, capsys):
    with Progress(540) as progress:
        clock.now += 60  # compilation
        for step in range(1, 421):
            progress.update(step, loss=jnp.float32(0.3124))
            clock.now += 0.0625
    assert capsys.readouterr().out.splitlines() == [
        "step 161/540  16.0 steps/s  training loss 0.312  ETA 0:24",
        "step 321/540  16.0 steps/s  training loss 0.312  ETA 0:14",
    ]


def test_pace_leaves_out_evaluations(clock, capsys):
    with Progress(100) as progress:
        progress.update(10)
        progress.row(10, {"loss": 1.0})
        clock.now += 500  # an evaluation, whose row comes at its end
        progress.row(10, {"loss": 1.0})
        clock.now += 20
        progress.update(20)
    assert capsys.readouterr().out.splitlines()[-1] == "step 20/100  2.0 s/step  ETA 2:40"


def test_rows_are_aligned_under_one_header(capsys):
    with Progress(1000) as progress:
        progress.row(90, {"loss": 0.51234, "accuracy": 0.9}, "validation")
        progress.say("[bold] is not markup, and a long line is not broken " + "up " * 50)
        progress.row(1000, {"loss": jnp.float32(12.3), "accuracy": None, "top5": 1.0})
    split, header, first, text, second = capsys.readouterr().out.splitlines()
    assert split == "validation"
    assert header == "step     loss  accuracy"
    assert first == "  90   0.5123    0.9000"
    assert text.startswith("[bold] is not markup") and text.rstrip().endswith("up up")
    assert second == "1000    12.30         -  top5 1.0000"


def test_terminal_gets_a_bar(terminal, clock, capsys):
    with Progress(100) as progress:
        for step in range(1, 51):
            progress.update(step, loss=0.5)
            clock.now += 0.1
        progress.row(50, {"loss": 0.5})
    out = capsys.readouterr().out
    assert "step 50/100" in out and "10.0 steps/s" in out and "ETA 0:05" in out


def test_quiet_prints_nothing(terminal, capsys):
    with Progress(10, quiet=True) as progress:
        progress.update(1, loss=1.0)
        progress.row(1, {"loss": 1.0})
        progress.say("hello")
    print_facts("title", [("a", "b")], quiet=True)
    print_result("title", [("a", "b")], quiet=True)
    assert capsys.readouterr().out == ""


def test_loss_stays_on_the_device_until_it_is_shown(clock):
    class Loss:
        fetched = 0

        def __float__(self):
            Loss.fetched += 1
            return 0.5

    with Progress(1000) as progress:
        for step in range(1, 1000):
            progress.update(step, loss=Loss())
            clock.now += 0.011
    assert Loss.fetched == 2  # after the first step, where measuring begins, and at the first line


def test_pace_is_that_of_finished_steps(clock, capsys):
    class Loss:
        """A loss that is there a second after its step was handed to the device."""

        def __init__(self, step):
            self.ready = 1001.0 + step

        def __float__(self):
            clock.now = max(clock.now, self.ready)
            return 0.5

    with Progress(100) as progress:
        for step in range(1, 40):
            progress.update(step, Loss(step))  # handed over in no time
            clock.now += 0.5
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "step 21/100  1.0 steps/s  training loss 0.500  ETA 1:19"


def test_facts_never_break_a_path(terminal, capsys):
    print_facts("Run", [("data", "digits, " * 12), ("workdir", "/a/very/long/folder/" * 8)])
    out = capsys.readouterr().out
    assert "/a/very/long/folder/" * 8 in out and len(out.splitlines()) > 3


def test_in_a_file_each_fact_is_one_line(capsys):
    print_result("Done", [("accuracy", "0.98 " * 100), ("time", "0:18")])
    blank, title, first, second = capsys.readouterr().out.splitlines()
    assert (blank, title, second) == ("", "Done", "  time      0:18")
    assert first.startswith("  accuracy  0.98")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (7, "7"), (np.int64(7), "7"), ("cat", "cat"), (0.0, "0.0000"), (0.98765, "0.9877"),
        (jnp.float32(30), "30.00"), (12345.6, "12346"), (3e-4, "3.0e-04"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_values_are_short(value, text):
    assert format_value(value) == text


def test_time_is_short():
    assert [format_seconds(s) for s in (17.6, 725, 3723)] == ["0:18", "12:05", "1:02:03"]


def test_a_notebook_gets_plain_text_and_a_line_that_is_rewritten(clock, capsys, monkeypatch):
    shown = []

    class Handle:
        def update(self, content, raw):
            shown[-1] = content["text/plain"]

    def display(content, raw, display_id):
        shown.append(content["text/plain"])
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress(40) as progress:
        assert shown == ["step 0/40"]
        for step in range(1, 41):
            progress.update(step, loss=0.5)
            clock.now += 0.5
        progress.row(40, {"loss": 0.4}, "validation")
    assert shown == ["step 40/40  2.0 steps/s  training loss 0.500  ETA 0:00"]
    print_facts("A run", [("data", "digits")])
    assert capsys.readouterr().out.splitlines() == [
        "validation",
        "step     loss",
        "  40   0.4000",
        "A run",
        "  data  digits",
    ]
