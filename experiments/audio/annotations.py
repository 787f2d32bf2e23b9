"""Reads annotations of recordings from Raven selection tables, CSV files and file names.

`experiments.audio.targets` turns them into labels of windows.
"""

import bisect
import csv
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from experiments.audio import raven
from experiments.core.errors import UserError
from experiments.core.files import write_text

# Names of the columns in our tables and those of other programs, in lower case; the first match counts.
_COLUMNS = {
    "file": ("file", "recording", "audio_file", "uri", "filename", "begin path", "begin file"),
    "start": ("start", "start_time", "start_offset_s", "start_s", "x1", "begin time (s)"),
    "end": ("end", "end_time", "end_offset_s", "end_s", "x2", "end time (s)"),
    "label": ("species", "annotation", "label", "common name"),
    "kind": ("label_type", "validated", "positive"),
    "low": ("low", "low freq (hz)", "y1"),
    "high": ("high", "high freq (hz)", "y2"),
    "split": ("split",),
    "selection": ("selection",),
}
_KINDS = {
    **dict.fromkeys(("", "positive", "present", "true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("negative", "absent", "false", "no", "0", "0.0"), False),
    **dict.fromkeys(("uncertain", "unknown", "nan", "?"), None),
}


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A label for an interval of a recording.

    Attributes:
        file: the recording's name.
        start, end: in seconds.
        label: the label.
        positive: whether the label is present; None if that is uncertain.
        low, high: lowest and highest frequency in Hz, if known.
        origin: table and line, such as 'labels.csv, line 7'.
    """

    file: str
    start: float
    end: float
    label: str
    positive: bool | None = True
    low: float | None = None
    high: float | None = None
    origin: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """Annotations of recordings.

    Attributes:
        rows: all usable annotations.
        files: the annotated recordings, including those without any sound of interest.
        splits: the split of each recording, if the table has one.
        skipped: name and reason for each unusable line, table or file.
    """

    rows: list[Annotation]
    files: list[str]
    splits: dict[str, str]
    skipped: list[tuple[str, str]]


def read_annotations(
    folder: str | os.PathLike, names: Iterable[str], source: str = "", label_column: str = ""
) -> Annotations:
    """Reads the annotations of recordings.

    Args:
        folder: the folder of the recordings.
        names: paths of the recordings below it, with forward slashes.
        source: a CSV file with the columns file, start, end, label and optionally label_type (positive,
            negative or uncertain), low, high and split; '' for the Raven tables next to the recordings.
        label_column: the column of the labels; '' for the first of Species, Annotation, label and Common
            Name.
    """
    folder, names = Path(folder), list(names)
    if source:
        return _match_recordings(read_csv_table(source, label_column), folder, names)
    rows, files, skipped, texts_by_folder = [], [], [], {}
    for name in names:
        parent = (folder / name).parent
        if parent not in texts_by_folder:  # List each folder only once.
            texts_by_folder[parent] = _list_texts(parent)
        tables = find_raven_tables(folder / name, texts_by_folder[parent])
        for table in tables:
            table_rows, table_skipped = read_raven_table(table, name, label_column)
            rows += table_rows
            skipped += table_skipped
        if tables:
            files.append(name)
    return Annotations(rows, files, {}, skipped)


def find_raven_tables(
    recording: str | os.PathLike, texts: Sequence[str] | None = None
) -> list[Path]:
    """Returns the Raven tables of X.wav: X.Table.1.selections.txt and the like, X.selections.txt and X.txt.

    `texts` are the sorted names in its folder that end in .txt; None lists them.
    """
    recording = Path(recording)
    texts = _list_texts(recording.parent) if texts is None else texts
    tables = []
    for name in texts[bisect.bisect_left(texts, recording.stem) :]:
        if not name.startswith(recording.stem):
            break
        path = recording.with_name(name)
        for stem in (recording.name, recording.stem):
            rest = name.removeprefix(stem).lower()
            named = re.fullmatch(r"\.table\.\d+(\..*)?\.txt|\.selections\.txt|\.txt", rest)
            # Predictions of programs have other names, and a .txt may hold anything.
            if name.startswith(stem) and named and _is_raven(path):
                tables.append(path)
                break
    return tables


def read_raven_table(
    path: str | os.PathLike, file: str, label_column: str = ""
) -> tuple[list[Annotation], list[tuple[str, str]]]:
    """Returns the annotations of a tab-separated Raven table, and origin and reason for each unusable line.

    Raven writes a selection once for each view; it is read once. `file` is the recording's name.
    """
    path = Path(path)
    try:
        columns, lines = _read_table(path, label_column)
    except (OSError, csv.Error) as error:
        return [], [(path.name, f"it cannot be read: {error}")]
    missing = [name for name in ("start", "end", "label") if name not in columns]
    if missing and lines:
        names = [label_column if n == "label" and label_column else n for n in missing]
        return [], [(path.name, f"it has no column {', '.join(names)}")]
    rows, skipped, seen = [], [], set()
    for number, cells in lines:
        selection = cells.get("selection") or number
        if selection in seen:
            continue
        seen.add(selection)
        _parse_row({**cells, "file": file}, f"{path.name}, line {number}", rows, skipped)
    return rows, skipped


def read_csv_table(path: str | os.PathLike, label_column: str = "") -> Annotations:
    """Reads annotations of many recordings from a CSV file; keeps their names as they are written.

    Raises:
        UserError: if the file cannot be read, a column is missing, or a recording is in two splits.
    """
    path = Path(path).expanduser()
    try:
        columns, lines = _read_table(path, label_column)
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--config.audio.annotations={path} cannot be read: {reason}.") from error
    for name in ("file", "start", "end", "label"):
        if name not in columns:
            known = [label_column] if name == "label" and label_column else _COLUMNS[name]
            raise UserError(
                f"--config.audio.annotations={path} has no column {name}: call it {' or '.join(known)}."
            )
    rows, skipped, files, splits = [], [], {}, {}
    for number, cells in lines:
        if _parse_row(cells, f"{path.name}, line {number}", rows, skipped):
            files[cells["file"]] = None
            file, split = cells["file"], cells.get("split", "").lower()
            if split and splits.setdefault(file, split) != split:
                raise UserError(
                    f"--config.audio.annotations={path}: {file} is in two splits, {splits[file]} and "
                    f"{split}; windows of one recording stay together."
                )
    return Annotations(rows, list(files), splits, skipped)


def clip_annotations(
    annotations: Iterable[Annotation], seconds: Mapping[str, float]
) -> tuple[list[Annotation], list[tuple[str, str]]]:
    """Clips annotations at the ends of their recordings, whose lengths are `seconds`.

    Returns:
        The annotations that begin within their recording, and origin and reason for the others.
    """
    rows, skipped = [], []
    for one in annotations:
        length = seconds[one.file]
        if one.start >= length:
            reason = f"it begins at {one.start:g} s, and {one.file} ends at {length:g} s"
            skipped.append((one.origin, reason))
        else:
            rows.append(dataclasses.replace(one, end=min(one.end, length)))
    return rows, skipped


def compile_pattern(pattern: str, setting: str) -> re.Pattern | None:
    """Returns the regular expression, with a group, of a setting below `--config.audio`; None for ''."""
    if not pattern:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--config.audio.{setting}={pattern} is not a regular expression: {error}."
        ) from error
    if not expression.groups:
        raise UserError(
            f"--config.audio.{setting}={pattern} has no group: put the part that counts in parentheses, such "
            "as '(site[0-9]+)_'."
        )
    return expression


def extract_label(name: str, pattern: str = "") -> str | None:
    """Returns the label in the name of a recording; None if it has none.

    Args:
        name: its path below the data folder, with forward slashes.
        pattern: a regular expression whose first group is the label; '' for the first folder.

    Example:
        >>> extract_label("wren/2019/a.wav"), extract_label("wren 3.wav", r"(\\w+) \\d")
        ('wren', 'wren')
    """
    expression = compile_pattern(pattern, "label_pattern")
    if expression is None:
        folder, inside, _ = name.partition("/")
        return folder if inside else None
    match = expression.search(name)
    return match[1].strip() if match and match[1] else None


def parse_labels(text: str, no_class: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the present and the absent labels that a folder's name lists.

    Args:
        text: 'A,B' are two labels; '-A' means that A is absent.
        no_class: names of folders without any class.

    Example:
        >>> parse_labels("wren,-owl", ["noise"]), parse_labels("Noise", ["noise"])
        ((('wren',), ('owl',)), ((), ()))
    """
    ignored = {word.lower() for word in no_class}
    words = [word.strip() for word in text.split(",")]
    words = [word for word in words if word and word.lower() not in ignored]
    present = tuple(word for word in words if not word.startswith("-"))
    return present, tuple(word[1:].strip() for word in words if word.startswith("-"))


def write_raven_table(
    path: str | os.PathLike,
    annotations: Sequence[Annotation],
    recording: str | os.PathLike,
) -> None:
    """Writes a Raven selection table, which `read_raven_table` reads back to the same intervals.

    Raven opens the sound file `recording` with it.
    """
    lines = [raven.COLUMNS]
    for number, one in enumerate(annotations, 1):
        place = (one.start, one.end, one.low, one.high)
        lines.append(raven.make_row(number, *place, one.label, None, str(recording)))
    write_text(path, "".join("\t".join(line) + "\n" for line in lines))


def _match_recordings(table: Annotations, folder: Path, names: Sequence[str]) -> Annotations:
    """Replaces the files of a table by names of recordings, matched by path, or by a unique file name."""
    known = {}
    for name in names:
        # A name that two recordings share matches neither.
        for short in {PurePosixPath(name).name, PurePosixPath(name).stem}:
            known[short] = None if short in known else name
    known |= {PurePosixPath(name).with_suffix("").as_posix(): name for name in names}
    known |= {name: name for name in names}
    top = folder.absolute().as_posix().rstrip("/") + "/"
    matched, skipped = {}, list(table.skipped)
    for file in table.files:
        short = file.replace("\\", "/").removeprefix("file://").removeprefix(top).removeprefix("./")
        last = short.rsplit("/")[-1]
        name = known[short] if short in known else known.get(last)
        if name is None:
            several = short in known or last in known
            problem = "more than one recording has" if several else "no recording has"
            skipped.append((file, f"it is annotated, but {problem} this name"))
        else:
            matched[file] = name
    rows = [
        dataclasses.replace(row, file=matched[row.file])
        for row in table.rows
        if row.file in matched
    ]
    splits = {matched[file]: split for file, split in table.splits.items() if file in matched}
    return Annotations(rows, list(dict.fromkeys(matched.values())), splits, skipped)


def _read_table(path: Path, label_column: str) -> tuple[set[str], list[tuple[int, dict[str, str]]]]:
    """Returns the columns of a table, and line number and cells of each row that is not empty."""
    # Excel marks UTF-8 with a BOM; in other encodings at least the times can be read.
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        head = file.readline()
        file.seek(0)
        if "\t" in head:  # Raven does not quote.
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(file, delimiter=";" if ";" in head and "," not in head else ",")
        header = [cell.strip().lower() for cell in next(reader, [])]
        aliases = {**_COLUMNS, "label": (label_column.lower(),)} if label_column else _COLUMNS
        places = {}
        for name, words in aliases.items():
            for word in words:
                if word in header:
                    places[name] = header.index(word)
                    break
        lines = []
        for row in reader:
            cells = {n: row[at].strip() if at < len(row) else "" for n, at in places.items()}
            if any(cell.strip() for cell in row):
                lines.append((reader.line_num, cells))
    return set(places), lines


def _parse_row(
    cells: dict[str, str], origin: str, rows: list[Annotation], skipped: list[tuple[str, str]]
) -> bool:
    """Appends the annotation of a row to `rows`, or the reason to `skipped`; returns whether it is usable."""
    start, end = _parse_number(cells["start"]), _parse_number(cells["end"])
    kind = cells.get("kind", "").lower()
    reason = ""
    if start is None or end is None:
        name = "start" if start is None else "end"
        reason = f"its {name}, '{cells[name]}', is not a number"
    elif start < 0 or end <= start:
        reason = f"it cannot last from {start:g} s to {end:g} s"
    elif not cells["label"]:
        reason = "it has no label"
    elif not cells["file"]:
        reason = "it names no file"
    elif kind not in _KINDS:
        reason = f"'{kind}' is neither positive nor negative nor uncertain"
    if reason:
        skipped.append((origin, reason))
        return False
    band = _parse_number(cells.get("low", "")), _parse_number(cells.get("high", ""))
    rows.append(Annotation(cells["file"], start, end, cells["label"], _KINDS[kind], *band, origin))
    return True


def _parse_number(text: str) -> float | None:
    """Returns a finite number, or None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _list_texts(folder: Path) -> list[str]:
    """Returns the sorted names in a folder that end in .txt."""
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(".txt"))


def _is_raven(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return "begin time (s)" in file.readline(10_000).lower()
    except OSError:  # For example, a folder.
        return False
