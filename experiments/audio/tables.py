"""Tables as people and programs save them; rows of a recording, and intervals in seconds."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from experiments.audio import annotation_formats
from experiments.audio.annotation_formats import Line, Row, Table, parse_number
from experiments.audio.matching import NameIndex
from experiments.core import text
from experiments.core.escaping import restore_cell

_EARLY = (
    0.1  # Seconds before the recording, where a selection may begin: rounding, or a loose hand.
)
_HEAD = 10_000  # Characters in which a table's header ends.


def read_table(path: Path, label_column: str = "") -> Table:
    """Reads a table of annotations in any of `annotation_formats`; see `read_records`.

    A label track without labels is an empty file.

    Raises:
        OSError, ValueError: if it cannot be read, or has no line.
    """
    content = text.read_text(path)
    if not content.strip() and path.name.lower().endswith(".labels.txt"):
        return Table({"start", "end", "label"}, [], is_empty=True)
    header, rows, tabs = _read_rows(content)
    kind = annotation_formats.detect_format(header, tabs, label_column)
    table = annotation_formats.READERS[kind](header, rows, label_column)
    return table._replace(is_empty=not rows)


def read_records(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a table by the names of its columns, in any usual encoding.

    Its values are separated by tabs, commas or semicolons; a cell that a short row lacks is empty.

    Raises:
        OSError, ValueError: if it cannot be read, has no line, or one with more cells than the header.
    """
    header, rows, _ = _read_rows(text.read_text(path))
    for number, row in rows:
        if any(cell.strip() for cell in row[len(header) :]):  # For example 0,7 between commas.
            raise ValueError(f"line {number} has more cells than the header")
    names, empty = [cell.strip() for cell in header], [""] * len(header)
    return [dict(zip(names, [*row, *empty], strict=False)) for _, row in rows]


def _read_rows(content: str) -> tuple[list[str], list[Row], bool]:
    """Returns the header of a table, its other rows that are not empty, and whether tabs separate them."""
    file = io.StringIO(content, newline="")
    head = next((line for line in file if line.strip()), "")
    if not head:
        raise ValueError("it is empty")
    file.seek(0)
    tabs = "\t" in head
    kind = annotation_formats.detect_format(head.rstrip("\r\n").split("\t"), tabs)
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
    return header, rows, tabs


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


def select_file(
    lines: Sequence[Line], file: str, known: NameIndex
) -> tuple[list[Line], list[tuple[int, str]]]:
    """Separates the lines of a recording from those of others in a table next to it.

    A table of one file belongs to the recording next to it, which may have been renamed, unless that file is
    another of the `known` recordings in the folder.

    Returns:
        Its lines, and the number of each other line and the file that it names.
    """
    names = [
        PurePosixPath(cells.get("begin_file", "").replace("\\", "/")).name for _, cells in lines
    ]
    folder = PurePosixPath(file).parent
    candidates = {
        name: [
            candidate
            for candidate in known.find((folder / name).as_posix())[0]
            if PurePosixPath(candidate).parent == folder
        ]
        for name in set(names) - {""}
    }
    if len(candidates) < 2 and not any(candidates.values()):
        return list(lines), []
    selected, elsewhere = [], []
    for line, name in zip(lines, names, strict=True):
        if not name or str(file) in candidates[name]:
            selected.append(line)
        else:
            elsewhere.append((line[0], name))
    return selected, elsewhere


def parse_interval(cells: dict[str, str], is_raven: bool) -> tuple[float, float]:
    """Returns start and end in the recording in seconds; raises a ValueError with what is wrong."""
    values = {}
    for name in ("start", "end", "offset") if is_raven and "offset" in cells else ("start", "end"):
        if name == "offset" and not cells[name]:
            raise ValueError("its time in its file is unknown: add Raven's column File Offset (s)")
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
