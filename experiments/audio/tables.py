"""Tables of annotations: which rows belong to a recording, and intervals in seconds."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from experiments.audio import annotation_formats
from experiments.audio.annotation_formats import Line, Table, parse_number
from experiments.core import text
from experiments.core.escaping import restore_cell

_EARLY = (
    0.1  # Seconds before the recording, where a selection may begin: rounding, or a loose hand.
)
_HEAD = 10_000  # Characters in which a table's header ends.


def read_table(path: Path, label_column: str = "") -> Table:
    """Reads a table in any of `annotation_formats`, in any usual encoding.

    Its values are separated by tabs, commas or semicolons.

    Raises:
        OSError, ValueError: if it cannot be read, or has no line.
    """
    file = io.StringIO(text.read_text(path), newline="")
    head = next((line for line in file if line.strip()), "")
    if not head:
        raise ValueError("it is empty")
    file.seek(0)
    tabs = "\t" in head
    kind = annotation_formats.detect_format(head.rstrip("\r\n").split("\t"), tabs, label_column)
    is_raw = tabs and kind in ("raven", "audacity")  # These do not quote.
    if is_raw:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        mark = "\t" if tabs else ";" if head.count(";") > head.count(",") else ","
        # Strict: a quotation mark that is not closed would swallow the rows after it.
        reader = csv.reader(file, delimiter=mark, strict=True)
    header, rows, last = [], [], 0
    try:
        for row in reader:
            if not is_raw:  # Tables of ours escape formulas.
                row = [restore_cell(cell) for cell in row]
            if not header:
                header = row if any(cell.strip() for cell in row) else []
            elif any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
            last = reader.line_num
    except csv.Error as error:
        quote = "" if is_raw else "; perhaps a quotation mark is not closed"
        raise ValueError(f"after line {last}: {error}{quote}") from error
    kind = annotation_formats.detect_format(header, tabs, label_column)
    return annotation_formats.READERS[kind](header, rows, label_column)


def is_annotation_text(path: Path) -> bool:
    """Returns whether a text file is a Raven table or an Audacity label track, by its first line."""
    try:
        with open(path, "rb") as file:
            head = file.read(text.HEAD)
    except OSError:  # For example, a folder.
        return False
    first = head.decode(text.detect_encoding(head), errors="replace")[:_HEAD].lstrip("\r\n")
    cells = re.split(r"[\r\n]", first, maxsplit=1)[0].split("\t")
    return annotation_formats.detect_format(cells, len(cells) > 1) in ("raven", "audacity")


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
