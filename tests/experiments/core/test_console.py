import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments.core.console import (
    Progress,
    Rate,
    format_seconds,
    format_value,
    print_facts,
    print_result,
)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def _file_console():
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def _terminal():
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=90)


def test_a_log_file_gets_a_line_every_ten_seconds():
    console, clock = _file_console(), Clock()
    with Progress(540, console=console, clock=clock) as progress:
        clock.now += 60  # compilation
        for step in range(1, 421):
            progress.update(step, loss=jnp.float32(0.3124))
            clock.now += 0.0625
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "step 2/540  16.0 steps/s  loss 0.312  ETA 0:34",
        "step 162/540  16.0 steps/s  loss 0.312  ETA 0:24",
        "step 322/540  16.0 steps/s  loss 0.312  ETA 0:14",
    ]


def test_rows_are_aligned_under_one_header():
    console = _file_console()
    with Progress(1000, console=console) as progress:
        progress.row(90, {"loss": 0.51234, "accuracy": 0.9})
        progress.say("[bold] is no markup, and a line longer than the console is not broken up")
        progress.row(1000, {"loss": jnp.float32(12.3), "accuracy": None, "top5": 1.0})
    header, first, said, second = console.file.getvalue().splitlines()
    assert header == "step     loss  accuracy"
    assert first == "  90   0.5123    0.9000"
    assert said.startswith("[bold] is no markup") and said.endswith("up")
    assert second == "1000    12.30         -  top5 1.0000"


def test_a_terminal_gets_a_bar():
    console, clock = _terminal(), Clock()
    with Progress(100, console=console, clock=clock) as progress:
        for step in range(1, 51):
            progress.update(step, loss=0.5)
            clock.now += 0.1
        progress.row(50, {"loss": 0.5})
    text = console.file.getvalue()
    assert "step 50/100" in text and "10.0 steps/s" in text and "ETA 0:05" in text


def test_a_quiet_one_prints_nothing():
    console = _terminal()
    with Progress(10, console=console, quiet=True) as progress:
        progress.update(1, loss=1.0)
        progress.row(1, {"loss": 1.0})
        progress.say("hello")
    print_facts("title", [("a", "b")], console, quiet=True)
    print_result("title", [("a", "b")], console, quiet=True)
    assert console.file.getvalue() == ""


def test_a_loss_stays_on_the_device_until_it_is_shown():
    class Loss:
        fetched = 0

        def __float__(self):
            Loss.fetched += 1
            return 0.5

    clock = Clock()
    with Progress(1000, console=_file_console(), clock=clock) as progress:
        for step in range(1, 1000):
            progress.update(step, loss=Loss())
            clock.now += 0.001
    assert Loss.fetched == 1


def test_the_rate_knows_neither_compilation_nor_pauses():
    rate = Rate()
    assert rate.value is None
    rate.update(100, 50.0)  # resumed at 100, compiled for 50 seconds
    assert rate.value is None
    rate.update(110, 51.0)
    assert rate.value == pytest.approx(10)
    rate.resume(500.0)  # an evaluation
    rate.update(120, 501.0)
    assert rate.value == pytest.approx(10)
    for second in range(60):
        rate.update(130 + 20 * second, 502.0 + second)
    assert rate.value == pytest.approx(20, rel=0.01)  # the past fades


def test_a_table_of_facts_never_breaks_a_path():
    rows = [("data", "digits, " * 12), ("workdir", "/a/very/long/folder/" * 8)]
    for console in (_file_console(), _terminal()):
        print_facts("Run", rows, console)
        text = console.file.getvalue()
        assert "/a/very/long/folder/" * 8 in text
        assert "Run" in text
    # In a file each fact is one line.
    assert len(text.splitlines()) > 3
    console = _file_console()
    print_result("Done", [("accuracy", "0.98"), ("time", "0:18")], console)
    assert console.file.getvalue() == "\nDone\n  accuracy  0.98\n  time      0:18\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (7, "7"),
        (np.int64(7), "7"),
        ("cat", "cat"),
        (0.0, "0.0000"),
        (0.98765, "0.9877"),
        (jnp.float32(30), "30.00"),
        (12345.6, "12346"),
        (3e-4, "3.0e-04"),
        (float("nan"), "nan"),
    ],
)
def test_values_are_short(value, text):
    assert format_value(value) == text


def test_time_is_short():
    assert [format_seconds(s) for s in (17.6, 725, 3723)] == ["0:18", "12:05", "1:02:03"]
