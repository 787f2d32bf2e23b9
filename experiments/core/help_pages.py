"""Lists files for pages of help, each with the first line of its docstring."""

import ast
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

MAX_WIDTH = 110


def read_summary(path: Path) -> str:
    """Returns the first line of the docstring of a Python file, which is not run; '' without one."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def format_entries(entries: Mapping[str, str]) -> str:
    """Returns a line for each name and its text, in two columns, as wide as the terminal.

    Example:
        >>> print(format_entries({"train": "Trains a network.", "report": "Makes a report."}))
          train   Trains a network.
          report  Makes a report.
    """
    margin = max(map(len, entries), default=0) + 4
    width = max(min(shutil.get_terminal_size().columns, MAX_WIDTH), margin + 24)
    return "\n".join(
        textwrap.fill(
            text,
            width,
            initial_indent=f"  {name}".ljust(margin),
            subsequent_indent=" " * margin,
            break_on_hyphens=False,
        )
        for name, text in entries.items()
    )
