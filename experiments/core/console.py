"""What a person sees while a run goes on: a bar, a row per evaluation, and tables of facts."""

import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

PLAIN_SECONDS = 10.0  # between two lines of a log file
REDRAW_SECONDS = 0.25  # between two states of the bar
SMOOTHING_SECONDS = 10.0  # a rate this old counts by 1/e


class Rate:
    """Steps per second, smoothed over the last seconds; begins with the first update.

    What comes before the first update (compilation) and during a pause (an evaluation) does
    not count.
    """

    def __init__(self):
        self._time = None
        self._step = None
        self._steps = 0.0
        self._seconds = 0.0

    def update(self, step: int, now: float) -> None:
        """Takes notice that `step` steps are finished at `now` seconds."""
        if self._time is not None and step > self._step:
            elapsed = max(now - self._time, 0.0)
            fade = math.exp(-elapsed / SMOOTHING_SECONDS)
            # Steps and seconds fade together: their ratio is a weighted mean from the start.
            self._steps = self._steps * fade + (step - self._step)
            self._seconds = self._seconds * fade + elapsed
        self._time, self._step = now, step

    def resume(self, now: float) -> None:
        """Leaves out the time since the last update."""
        if self._time is not None:
            self._time = now

    @property
    def value(self) -> float | None:
        """Steps per second, or None before the second update."""
        return self._steps / self._seconds if self._seconds > 0 else None


class Progress:
    """A progress bar with rows above it; in a log file, plain lines instead.

        with Progress(total_steps=540) as progress:
            progress.update(120, loss=0.312)
            progress.row(120, {"loss": 0.4, "accuracy": 0.91})
            progress.say("learning rate halved")

    On a console that is no terminal there is no bar: a line like
    `step 120/540  22.4 steps/s  loss 0.312  ETA 0:18` comes at most every 10 seconds.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        console: Console | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "step",
    ):
        """Prepares; nothing is printed before `with`.

        Args:
          total_steps: the step at which the run is done.
          start_step: the step it continues from.
          console: where to print; None for standard output.
          quiet: print nothing at all (every process but the first).
          clock: seconds, for tests.
          unit: what is counted, in the singular.
        """
        self._unit = unit
        self._total = total_steps
        self._console = console or Console()
        self._quiet = quiet
        self._clock = clock
        self._rate = Rate()
        self._shown_at = -math.inf
        self._last: tuple[int, object] | None = None
        self._columns: list[tuple[str, int]] | None = None
        self._bar = None
        if not quiet and self._console.is_interactive:
            self._bar = RichProgress(
                TextColumn(f"{unit} {{task.completed}}/{{task.total}}"),
                BarColumn(bar_width=30, complete_style="cyan", finished_style="green"),
                TextColumn("{task.fields[facts]}"),
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, facts="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            if self._last is not None and exception[0] is None:
                self._draw(*self._last)
            self._bar.stop()

    def update(self, step: int, loss: object = None) -> None:
        """Takes notice that `step` steps are finished.

        Args:
          step: the number of finished steps.
          loss: a scalar, or None where it is not known. One that still is on the device is
            fetched only when it is shown, so that calling this every step costs nothing.
        """
        if self._quiet:
            return
        now = self._clock()
        self._rate.update(step, now)
        if self._bar is not None:
            self._last = (step, loss)
            if now - self._shown_at >= REDRAW_SECONDS:
                self._shown_at = now
                self._draw(step, loss)
        elif now - self._shown_at >= PLAIN_SECONDS and self._rate.value is not None:
            self._shown_at = now
            self._print("  ".join([f"{self._unit} {step}/{self._total}", *self._facts(step, loss)]))

    def row(self, step: int, metrics: Mapping[str, object]) -> None:
        """Prints one row of the table of evaluations; the header comes once, with the first.

        Args:
          step: the number of finished steps.
          metrics: name to scalar (None is shown as a dash) or text. The first row fixes the
            columns; a metric that comes later is written behind them with its name.
        """
        if self._quiet:
            return
        if self._columns is None:
            width = max(len("step"), len(str(self._total)))
            self._columns = [("step", width)]
            for name, value in metrics.items():
                self._columns.append((name, max(len(name), len(format_value(value)), 7)))
            header = "  ".join(name.rjust(width) for name, width in self._columns)
            self._print(Text(header, style="bold"))
        values = {"step": int(step), **metrics}
        cells = [format_value(values.get(name)).rjust(width) for name, width in self._columns]
        known = {name for name, _ in self._columns}
        more = [f"{name} {format_value(v)}" for name, v in values.items() if name not in known]
        self._print("  ".join([*cells, *more]))
        self._rate.resume(self._clock())

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._quiet:
            self._print(text)

    def _draw(self, step: int, loss: object) -> None:
        """Brings the bar up to date."""
        self._bar.update(self._task, completed=step, facts="  ".join(self._facts(step, loss)))

    def _facts(self, step: int, loss: object) -> list[str]:
        """Rate, loss and time left, as far as they are known."""
        facts = []
        rate = self._rate.value
        if rate is not None:
            facts.append(
                f"{rate:.1f} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit}"
            )
        if loss is not None:
            facts.append(f"loss {float(loss):.3f}")
        if rate is not None:
            facts.append(f"ETA {format_seconds(max(self._total - step, 0) / rate)}")
        return facts

    def _print(self, line: str | Text) -> None:
        _print(self._console, line)


def print_facts(
    title: str,
    rows: Sequence[tuple[str, str]],
    console: Console | None = None,
    quiet: bool = False,
) -> None:
    """Prints the facts of a run, one a line: what it is called, what it is.

    Args:
      title: the line above.
      rows: name and value. A long value continues below itself, but a word (a path) is never
        broken, so that it can be copied.
      console: where to print; None for standard output.
      quiet: print nothing at all (every process but the first).
    """
    if quiet:
        return
    console = console or Console()
    margin = max((len(name) for name, _ in rows), default=0) + 4
    _print(console, Text(title, style="bold cyan"))
    for name, value in rows:
        # A log file has no width to keep to.
        room = max(console.width - margin, 24) if console.is_terminal else 10**6
        lines = [
            part
            for line in (str(value).splitlines() or [""])
            for part in textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False)
            or [""]
        ]
        for number, line in enumerate(lines):
            head = f"  {name if number == 0 else ''}".ljust(margin)
            _print(console, Text.assemble((head, "dim"), line))


def print_result(
    title: str,
    rows: Sequence[tuple[str, str]],
    console: Console | None = None,
    quiet: bool = False,
) -> None:
    """Prints the result of a run, as `print_facts` prints its facts; an empty line first.

    Args:
      title: the line above.
      rows: name and value.
      console: where to print; None for standard output.
      quiet: print nothing at all (every process but the first).
    """
    if quiet:
        return
    console = console or Console()
    _print(console, "")
    print_facts(title, rows, console)


def format_value(value: object) -> str:
    """A scalar in few characters, with as many digits as a comparison needs.

    Args:
      value: a number (Python, numpy or jax), text, or None.

    Returns:
      Whole numbers as they are, other numbers with four decimals (fewer for large ones, an
      exponent for tiny ones), text unchanged, a dash for None.
    """
    if value is None:
        return "-"
    if hasattr(value, "item"):
        value = value.item()  # numpy's and jax's scalars, as Python's
    if isinstance(value, str | bool | int):
        return str(value)
    number = float(value)
    size = abs(number)
    if not math.isfinite(number):
        return str(number)
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{number:.1e}"
    return f"{number:.{4 if size < 10 else 2 if size < 1000 else 0}f}"


def format_seconds(seconds: float) -> str:
    """Seconds as 0:18, 12:05 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _print(console: Console, line: str | Text) -> None:
    """One line as it is: brackets are no markup, and nothing is wrapped or cut."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.file.flush()  # a log file is read while the run goes on
