"""The terminal during a run: a progress bar, a row per evaluation, and tables of facts."""

import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from experiments.core.escaping import escape_control
from experiments.core.notebooks import NotebookLine

LOG_SECONDS = 10.0  # between two lines of a log file
REDRAW_SECONDS = 0.25  # between two states of the bar


class Progress:
    """A progress bar with rows above it; in a log file, plain lines instead.

        with Progress(total_steps=540) as progress:
            progress.update(120, loss=0.312)
            progress.row(120, {"loss": 0.4, "accuracy": 0.91})
            progress.say("learning rate halved")

    Where the output is not a terminal there is no bar: a line like
    `step 120/540  22.4 steps/s  training loss 0.312  ETA 0:18` comes at most every 10 seconds. In a notebook,
    one such line is rewritten in place.
    """

    def __init__(
        self, total_steps: int, start_step: int = 0, quiet: bool = False, unit: str = "step"
    ):
        """Prepares the bar; nothing is printed before `with`, and nothing at all if `quiet`.

        Args:
            total_steps: the step at which the run is done.
            start_step: the step that it continues from.
            quiet: true for every process but the first.
            unit: what is counted, in the singular.
        """
        self._unit = unit
        self._total = total_steps
        self._quiet = quiet
        self._console = make_console()
        self._columns: list[tuple[str, int]] | None = None
        # The pace is measured from one display to the next, without pauses: (step, time) of the last one.
        self._measured_from: tuple[int, float] | None = None
        self._pace: float | None = None  # steps per second
        self._latest: tuple[int, object] | None = None
        self._bar = self._notebook = None
        if not quiet and Console().is_jupyter:
            self._notebook = NotebookLine()
        elif not quiet and self._console.is_interactive:
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
        elif self._notebook is not None:
            self._notebook.write(f"{self._unit} 0/{self._total}")
        return self

    def __exit__(self, *exception) -> None:
        if self._latest is not None and exception[0] is None and self._is_live:
            self._draw(*self._latest)
        if self._bar is not None:
            self._bar.stop()

    @property
    def _is_live(self) -> bool:
        """Returns whether the progress is shown at one place that changes."""
        return self._bar is not None or self._notebook is not None

    def update(self, step: int, loss: object = None) -> None:
        """Records that `step` steps are finished.

        A loss that is still on the device is fetched only when it is shown, and once at the start, so that
        calling this at every step costs nothing.
        """
        if self._quiet:
            return
        if self._measured_from is None:  # what came before the first step was compilation
            _fetch(loss)
            self._measured_from = step, time.monotonic()
            return
        self._latest = step, loss
        interval = REDRAW_SECONDS if self._is_live else LOG_SECONDS
        since_step, since = self._measured_from
        if time.monotonic() - since < interval or step == since_step:
            return
        loss, now = _fetch(loss), time.monotonic()
        pace = (step - since_step) / (now - since)
        # Half of the past pace smooths a display that changes.
        smooth = self._is_live and self._pace is not None
        self._pace = (pace + self._pace) / 2 if smooth else pace
        self._measured_from = step, now
        if self._is_live:
            self._draw(step, loss)
        else:
            self._print(self._describe(step, loss))

    def row(self, step: int, metrics: Mapping[str, object], split: str = "") -> None:
        """Prints one row of the table of evaluations; the header comes with the first row.

        The `split` that was evaluated is named above the header. The first row fixes the columns; a metric
        that appears later is written after them with its name.
        """
        if self._quiet:
            return
        if self._columns is None:
            width = max(len("step"), len(str(self._total)))
            self._columns = [("step", width)]
            for name, value in metrics.items():
                self._columns.append((name, max(len(name), len(format_value(value)), 7)))
            if split:
                self._print(Text(split, style="bold"))
            header = "  ".join(name.rjust(width) for name, width in self._columns)
            self._print(Text(header, style="bold"))
        values = {"step": int(step), **metrics}
        cells = [format_value(values.get(name)).rjust(width) for name, width in self._columns]
        known = {name for name, _ in self._columns}
        more = [f"{name} {format_value(v)}" for name, v in values.items() if name not in known]
        self._print("  ".join([*cells, *more]))
        self._measured_from = step, time.monotonic()  # an evaluation is not part of the pace

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._quiet:
            self._print(text)

    def _draw(self, step: int, loss: object) -> None:
        if self._notebook is not None:
            self._notebook.write(self._describe(step, loss))
        else:
            self._bar.update(self._task, completed=step, facts="  ".join(self._facts(step, loss)))

    def _describe(self, step: int, loss: object) -> str:
        return "  ".join([f"{self._unit} {step}/{self._total}", *self._facts(step, loss)])

    def _facts(self, step: int, loss: object) -> list[str]:
        """Returns pace, loss and time left, as far as they are known."""
        facts = []
        if pace := self._pace:
            unit = self._unit
            facts.append(f"{pace:.1f} {unit}s/s" if pace >= 1 else f"{1 / pace:.1f} s/{unit}")
        if loss is not None:
            facts.append(f"training loss {float(loss):.3f}")
        if pace:
            facts.append(f"ETA {format_seconds(max(self._total - step, 0) / pace)}")
        return facts

    def _print(self, line: str | Text) -> None:
        _print_line(self._console, line)


def make_console() -> Console:
    """Returns a console for standard output; in a notebook it prints plain text, like a log file.

    Left to itself, rich would make a separate block of HTML of each line there, and text with escape codes.
    """
    console = Console()
    if console.is_jupyter:
        return Console(force_jupyter=False, force_terminal=False, force_interactive=False)
    return console


def _fetch(loss: object) -> float | None:
    """Waits for a loss: JAX hands a step to the device long before it is done."""
    return None if loss is None else float(loss)


def print_line(text: str = "", error: bool = False) -> None:
    """Prints one line to standard output or standard error; every command prints by this or by `Progress`."""
    print(escape_control(text), file=sys.stderr if error else sys.stdout, flush=True)


def print_lines(text: str, error: bool = False) -> None:
    """Prints a text of several lines, such as a traceback."""
    for line in text.rstrip("\n").split("\n"):
        print_line(line, error)


def print_page(text: str) -> None:
    """Prints a page of help, of which its reader, such as `head`, may want only a part."""
    try:
        print_lines(text)
    except BrokenPipeError:
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_facts(title: str, rows: Sequence[tuple[str, str]], quiet: bool = False) -> None:
    """Prints a title and one fact a line, name and value; nothing if `quiet`.

    A long value continues on the next line, but a word (a path) is never broken, so that it can be copied.
    """
    if quiet:
        return
    console = make_console()
    rows = [(escape_control(name), escape_control(str(value))) for name, value in rows]
    margin = max((len(name) for name, _ in rows), default=0) + 4
    # A log file has no width to keep to.
    width = max(console.width, margin + 24) if console.is_terminal else 10**6
    wrapper = textwrap.TextWrapper(
        width, subsequent_indent=" " * margin, break_long_words=False, break_on_hyphens=False
    )
    _print_line(console, Text(title, style="bold cyan"))
    for name, value in rows:
        wrapper.initial_indent = f"  {name}".ljust(margin)
        filled = wrapper.fill(value) or wrapper.initial_indent
        for number, line in enumerate(filled.split("\n")):
            text = Text(line)
            text.stylize("dim", 0, 0 if number else margin)
            _print_line(console, text)


def print_result(title: str, rows: Sequence[tuple[str, str]], quiet: bool = False) -> None:
    """Prints the result of a command as `print_facts` does, after an empty line."""
    if not quiet:
        _print_line(make_console(), "")
        print_facts(title, rows)


def format_value(value: object) -> str:
    """Formats a scalar of Python, NumPy or JAX with few digits; None is a dash, text stays as it is."""
    if value is None:
        return "-"
    if hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy or JAX
    if isinstance(value, str | bool | int):
        return str(value)
    size = abs(value)
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.{4 if size < 10 else 2 if size < 1000 else 0}f}"


def format_seconds(seconds: float) -> str:
    """Formats seconds as 0:18, 12:05 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _print_line(console: Console, line: str | Text) -> None:
    """Prints one line as it is: brackets are not markup, and nothing is wrapped or cut.

    Control characters are escaped: a file or a class may have a name that would rewrite the terminal.
    """
    plain = line.plain if isinstance(line, Text) else line
    if (escaped := escape_control(plain)) != plain:
        line = Text(escaped, line.style) if isinstance(line, Text) else escaped
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.file.flush()  # a log file is read while the run goes on
