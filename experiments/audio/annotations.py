"""Who was heard when: Raven selection tables, CSV files, and what the names of recordings tell.

What that means for the windows of a recording: `experiments.audio.targets`.
"""

import bisect
import csv
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from experiments.audio import raven
from experiments.core.errors import UserError
from experiments.core.files import write_text

# What the columns are called, here and elsewhere, in lower case; the first that is there is taken.
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
    """A label for a stretch of a recording.

    Attributes:
        file: the recording's name.
        start, end: in seconds.
        label: what is, or is not, there.
        positive: whether it is there; None where that is uncertain.
        low, high: the lowest and highest frequency in Hz, where they are known.
        origin: where it was read, such as 'labels.csv, line 7'.
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
    """What was read.

    Attributes:
        rows: all annotations that can be used.
        files: the recordings that somebody has annotated, also those where nothing was heard.
        splits: recording to split, where the table says so.
        skipped: what cannot be used (a line, a table or a file that is named), and why.
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
        folder: where the recordings are.
        names: paths of the recordings below it, with forward slashes.
        source: a CSV file with the columns file, start, end, label and perhaps label_type (positive,
            negative or uncertain), low, high and split; without, the Raven tables beside the recordings.
        label_column: the column of the labels; without, the first of Species, Annotation, label and
            Common Name.

    Raises:
        UserError: if the CSV file cannot be read, or lacks a column.
    """
    folder, names = pathlib.Path(folder), list(names)
    if source:
        return _resolved(read_csv_table(source, label_column), folder, names)
    rows, files, skipped, beside = [], [], [], {}
    for name in names:
        place = (folder / name).parent
        if place not in beside:  # Each folder is listed once, however many recordings are in it.
            beside[place] = _texts(place)
        tables = find_raven_tables(folder / name, beside[place])
        for table in tables:
            found, wrong = read_raven_table(table, name, label_column)
            rows += found
            skipped += wrong
        if tables:
            files.append(name)
    return Annotations(rows, files, {}, skipped)


def find_raven_tables(
    recording: str | os.PathLike, texts: Sequence[str] | None = None
) -> list[pathlib.Path]:
    """The Raven tables beside X.wav: X.Table.1.selections.txt and the like, X.selections.txt and X.txt.

    Args:
        recording: the sound file.
        texts: the names in its folder that end in .txt, sorted; without, they are looked up.
    """
    recording = pathlib.Path(recording)
    texts = _texts(recording.parent) if texts is None else texts
    found = []
    for name in texts[bisect.bisect_left(texts, recording.stem) :]:
        if not name.startswith(recording.stem):
            break
        path = recording.with_name(name)
        for stem in (recording.name, recording.stem):
            rest = name.removeprefix(stem).lower()
            named = re.fullmatch(r"\.table\.\d+(\..*)?\.txt|\.selections\.txt|\.txt", rest)
            # What programs predicted has names of other kinds, and a .txt may hold anything.
            if name.startswith(stem) and named and _is_raven(path):
                found.append(path)
                break
    return found


def read_raven_table(
    path: str | os.PathLike, file: str, label_column: str = ""
) -> tuple[list[Annotation], list[tuple[str, str]]]:
    """Reads a Raven selection table.

    Raven writes a selection once for each view: it is kept once.

    Args:
        path: the table, tab-separated.
        file: the recording's name.
        label_column: as in `read_annotations`.

    Returns:
        The annotations, and what cannot be used: table and line, reason.
    """
    path = pathlib.Path(path)
    try:
        columns, lines = _table(path, label_column)
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
        _take({**cells, "file": file}, f"{path.name}, line {number}", rows, skipped)
    return rows, skipped


def read_csv_table(path: str | os.PathLike, label_column: str = "") -> Annotations:
    """Reads annotations of many recordings, whose names are left as they are written.

    Raises:
        UserError: if it cannot be read, a column is missing, or a recording is in two splits.
    """
    path = pathlib.Path(path).expanduser()
    try:
        columns, lines = _table(path, label_column)
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
        if _take(cells, f"{path.name}, line {number}", rows, skipped):
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
    """Cuts annotations off at the ends of their recordings.

    Args:
        annotations: of any recordings.
        seconds: how long each recording is.

    Returns:
        Those that begin within their recording, and what cannot be used: origin and reason.
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
    """Returns the compiled regular expression of a setting, or None for an empty one.

    Args:
        pattern: the regular expression; its first group is what counts.
        setting: name of the setting below `--config.audio`, for error messages.

    Raises:
        UserError: if the pattern is invalid or has no group.
    """
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
    """What the name of a recording says is in it; None where it says nothing.

    Args:
        name: its path below the data's folder, with forward slashes.
        pattern: a regular expression whose first group it is; without, it is the first folder.

    Raises:
        UserError: if the pattern is none, or has no group.

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
    """The labels that are there and those that are not, of a folder's name.

    Args:
        text: 'A,B' are two labels, '-A' says that A is not there.
        no_class: names that say that nothing is.

    Example:
        >>> parse_labels("wren,-owl", ["noise"]), parse_labels("Noise", ["noise"])
        ((('wren',), ('owl',)), ((), ()))
    """
    nothing = {word.lower() for word in no_class}
    words = [word.strip() for word in text.split(",")]
    words = [word for word in words if word and word.lower() not in nothing]
    there = tuple(word for word in words if not word.startswith("-"))
    return there, tuple(word[1:].strip() for word in words if word.startswith("-"))


def write_raven_table(
    path: str | os.PathLike,
    annotations: Sequence[Annotation],
    scores: Sequence[float] | None = None,
    recording: str | os.PathLike = "",
) -> None:
    """Writes a Raven selection table, which `read_raven_table` reads back to the same intervals.

    Args:
        path: the table.
        annotations: one selection each.
        scores: one for each of them.
        recording: the sound file, for Raven to open.
    """
    lines = [raven.COLUMNS]
    for number, one in enumerate(annotations):
        score = None if scores is None else scores[number]
        place = (one.start, one.end, one.low, one.high)
        lines.append(raven.make_row(number + 1, *place, one.label, score, str(recording)))
    write_text(path, "".join("\t".join(line) + "\n" for line in lines))


def _resolved(table: Annotations, folder: pathlib.Path, names: Sequence[str]) -> Annotations:
    """The same with the names of recordings; files are named by path, or by name where it is the only one."""
    known = {}
    for name in names:
        # What two recordings are called stands for none.
        for short in {pathlib.PurePosixPath(name).name, pathlib.PurePosixPath(name).stem}:
            known[short] = None if short in known else name
    known |= {pathlib.PurePosixPath(name).with_suffix("").as_posix(): name for name in names}
    known |= {name: name for name in names}
    top = folder.absolute().as_posix().rstrip("/") + "/"
    found, skipped = {}, list(table.skipped)
    for file in table.files:
        short = file.replace("\\", "/").removeprefix("file://").removeprefix(top).removeprefix("./")
        last = short.rsplit("/")[-1]
        name = known[short] if short in known else known.get(last)
        if name is None:
            several = short in known or last in known
            what = "more than one recording has" if several else "no recording has"
            skipped.append((file, f"it is annotated, but {what} this name"))
        else:
            found[file] = name
    rows = [
        dataclasses.replace(one, file=found[one.file]) for one in table.rows if one.file in found
    ]
    splits = {found[file]: split for file, split in table.splits.items() if file in found}
    return Annotations(rows, list(dict.fromkeys(found.values())), splits, skipped)


def _table(
    path: pathlib.Path, label_column: str
) -> tuple[set[str], list[tuple[int, dict[str, str]]]]:
    """Which columns there are, and line number and cells of each row that is not empty."""
    # Excel marks UTF-8 at the beginning; of what is none, the times are read all the same.
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        head = file.readline()
        file.seek(0)
        if "\t" in head:  # Raven quotes nothing.
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


def _take(
    cells: dict[str, str], origin: str, rows: list[Annotation], skipped: list[tuple[str, str]]
) -> bool:
    """Adds the annotation of a row, or why it is none."""
    start, end = _number(cells["start"]), _number(cells["end"])
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
    band = _number(cells.get("low", "")), _number(cells.get("high", ""))
    rows.append(Annotation(cells["file"], start, end, cells["label"], _KINDS[kind], *band, origin))
    return True


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _texts(folder: pathlib.Path) -> list[str]:
    """The names in a folder that end in .txt, sorted."""
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(".txt"))


def _is_raven(path: pathlib.Path) -> bool:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return "begin time (s)" in file.readline(10_000).lower()
    except OSError:  # such as a folder
        return False
