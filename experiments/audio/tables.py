"""Tables of annotations: columns by their names in several programs, and intervals in seconds."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from experiments.core import text
from experiments.core.escaping import restore_cell

# Lower case; the first match counts.
COLUMNS = {
    "file": ("file", "recording", "audio_file", "uri", "filename", "begin path", "begin file"),
    "start": ("start", "start_time", "start_offset_s", "start_s", "x1", "begin time (s)"),
    "end": ("end", "end_time", "end_offset_s", "end_s", "x2", "end time (s)"),
    "label": ("species", "annotation", "label", "common name"),
    "kind": ("label_type", "validated", "positive"),
    "low": ("low", "low freq (hz)", "y1"),
    "high": ("high", "high freq (hz)", "y2"),
    "split": ("split",),
    "selection": ("selection",),
    "offset": ("file offset (s)",),
    "begin_file": ("begin file", "begin path"),
}
"""Names of the columns in our tables and those of other programs."""

_RAVEN_START = "begin time (s)"
_EARLY = (
    0.1  # Seconds before the recording, where a selection may begin: rounding, or a loose hand.
)
_HEAD = 10_000  # Characters in which a table's header ends.

Line = tuple[int, dict[str, str]]
"""Number of a line in its file, and its cells by the names of `COLUMNS`."""


class Table(NamedTuple):
    """The cells of a table as text.

    Attributes:
        columns: names of `COLUMNS` that it has.
        lines: the rows that are not empty.
        is_raven: whether times count from the first of the files that Raven has opened as one.
    """

    columns: set[str]
    lines: list[Line]
    is_raven: bool


def read_table(path: Path, label_column: str = "") -> Table:
    """Reads a table whose values are separated by tabs, commas or semicolons, in any usual encoding.

    Raises:
        OSError, ValueError, csv.Error: if it cannot be read.
    """
    file = io.StringIO(text.read_text(path), newline="")
    head = file.readline()
    file.seek(0)
    if "\t" in head:  # Raven does not quote.
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(file, delimiter=";" if head.count(";") > head.count(",") else ",")
    header = [cell.strip().lower() for cell in next(reader, [])]
    names = {**COLUMNS, "label": (label_column.lower(),)} if label_column else COLUMNS
    places = {}
    for name, words in names.items():
        for word in words:
            if word in header:
                places[name] = header.index(word)
                break
    lines = []
    for row in reader:
        if reader.dialect.delimiter != "\t":  # Tables of ours escape formulas.
            row = [restore_cell(cell) for cell in row]
        cells = {n: row[at].strip() if at < len(row) else "" for n, at in places.items()}
        if any(cell.strip() for cell in row):
            lines.append((reader.line_num, cells))
    is_raven = "start" in places and header[places["start"]] == _RAVEN_START
    return Table(set(places), lines, is_raven)


def is_raven(path: Path) -> bool:
    """Returns whether a text file has the header of a Raven table."""
    try:
        with open(path, "rb") as file:
            head = file.read(text.HEAD)
    except OSError:  # For example, a folder.
        return False
    first = head.decode(text.detect_encoding(head), errors="replace")[:_HEAD]
    return _RAVEN_START in re.split(r"[\r\n]", first, maxsplit=1)[0].lower()


def drop_views(lines: Iterable[Line]) -> Iterator[Line]:
    """Yields the lines without those that only repeat a selection for another of Raven's views.

    A number alone does not make a selection: two observers' tables, pasted together, repeat it.
    """
    seen = set()
    for number, cells in lines:
        if cells.get("selection"):
            key = tuple(cells.items())
            if key in seen:
                continue
            seen.add(key)
        yield number, cells


def select_file(lines: Sequence[Line], file: str) -> tuple[list[Line], list[tuple[int, str]]]:
    """Separates the lines of a recording from those of others in a table over several files.

    A table of one file belongs to the recording next to it, which may have been renamed.

    Returns:
        Its lines, and the number of each other line and the file that it names.
    """
    names = [
        PurePosixPath(cells.get("begin_file", "").replace("\\", "/")).name for _, cells in lines
    ]
    if len(set(names) - {""}) < 2:
        return list(lines), []
    own = {PurePosixPath(file).name.lower(), PurePosixPath(file).stem.lower(), ""}
    selected, elsewhere = [], []
    for line, name in zip(lines, names, strict=True):
        if name.lower() in own:
            selected.append(line)
        else:
            elsewhere.append((line[0], name))
    return selected, elsewhere


def parse_interval(cells: dict[str, str], is_raven: bool) -> tuple[float, float]:
    """Returns start and end in the recording in seconds; raises a ValueError with what is wrong."""
    values = {}
    for name in ("start", "end", "offset") if is_raven and "offset" in cells else ("start", "end"):
        values[name] = parse_number(cells[name])
        if values[name] is None:
            raise ValueError(f"its {name}, '{cells[name]}', is not a number")
    start, end = values["start"], values["end"]
    offset = values.get("offset", start)
    if abs(offset - start) > 1e-6:  # Rounded, because differences of decimals are not exact.
        start, end = offset, round(offset + end - start, 9)
    if -_EARLY <= start < 0 < end:
        start = 0.0
    if start < 0 or end <= start:
        raise ValueError(f"it cannot last from {start:g} s to {end:g} s")
    return start, end


def parse_number(cell: str) -> float | None:
    """Returns a finite number, which may have a decimal comma; None for any other text."""
    if re.fullmatch(r"[+-]?\d*,\d+", cell):
        cell = cell.replace(",", ".")
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None
