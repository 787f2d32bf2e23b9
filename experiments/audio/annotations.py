"""Reads annotations of recordings from tables of several programs, and from file names.

`experiments.audio.targets` turns them into labels of windows.
"""

import bisect
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.audio import corrections, matching, raven, tables
from experiments.audio.annotation_formats import parse_number
from experiments.audio.matching import NameIndex, normalize
from experiments.core.errors import UserError
from experiments.core.files import write_text
from experiments.core.listing import list_files
from experiments.core.words import count_noun

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
"""Suffixes of the tables in a folder."""

_KINDS = {
    **dict.fromkeys(("", "positive", "present", "true", "yes", "1", "1.0", "right"), True),
    **dict.fromkeys(("negative", "absent", "false", "no", "0", "0.0", "wrong"), False),
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
        score: of a detection by a program, if the table has it.
        is_clip: whether the label is of the interval as a whole, such as of a clip that somebody has listened
            to, and not of a sound from its start to its end.
    """

    file: str
    start: float
    end: float
    label: str
    positive: bool | None = True
    low: float | None = None
    high: float | None = None
    origin: str = dataclasses.field(default="", compare=False)
    score: float | None = dataclasses.field(default=None, compare=False)
    is_clip: bool = dataclasses.field(default=False, compare=False)


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
        source: a table in one of `annotation_formats`, a folder of such tables, or several of these between
            commas; '' for the Raven tables and Audacity label tracks next to the recordings.
        label_column: the column of the labels; '' for the usual ones of the format, such as Species,
            Annotation, label and Common Name.

    Raises:
        UserError: if a table that `source` names, or all of a folder, cannot be used.
    """
    folder, names = Path(folder), list(names)
    known = NameIndex(names)
    if source:
        sources = _split_sources(source)
        if not sources:
            raise UserError(f"--config.audio.annotations={source} names no table.")
        tables_read = [_read_source(one, label_column, known) for one in sources]
        return match_recordings(_join_tables(tables_read, source), folder, names)
    rows, files, skipped, texts_by_folder = [], [], [], {}
    for name in names:
        parent = (folder / name).parent
        if parent not in texts_by_folder:  # List each folder only once.
            texts_by_folder[parent] = _list_texts(parent)
        for path in find_own_tables(folder / name, texts_by_folder[parent]):
            try:
                table_rows, table_skipped = _load_raven_table(path, name, label_column, known)
            except (
                ValueError
            ) as error:  # Nothing is known of its recording: it is not a silent one.
                skipped.append((path.name, str(error)))
                continue
            rows += table_rows
            skipped += table_skipped
            files.append(name)
    files = list(dict.fromkeys(files))
    return Annotations(rows, files, {}, skipped)


def find_own_tables(recording: str | os.PathLike, texts: Sequence[str] | None = None) -> list[Path]:
    """Returns X.wav's tables: X.Table.1.selections.txt and the like, X.selections.txt, X.labels.txt, X.txt.

    They are Raven's selection tables or Audacity's label tracks. `texts` are the names in its folder that
    end in .txt, sorted after `normalize`; None lists them.
    """
    recording = Path(recording)
    texts = _list_texts(recording.parent) if texts is None else texts
    found = []
    own_name, own_stem = normalize(recording.name), normalize(recording.stem)
    for file in texts[bisect.bisect_left(texts, own_stem, key=normalize) :]:
        name = normalize(file)
        if not name.startswith(own_stem):
            break
        path = recording.with_name(file)
        for stem in (own_name, own_stem):
            rest = name.removeprefix(stem).lower()
            named = re.fullmatch(r"\.table\.\d+(\..*)?\.txt|\.(selections|labels)\.txt", rest)
            # Predictions of programs have other names, and a .txt may hold anything.
            is_table = named or (rest == ".txt" and tables.is_annotation_text(path))
            if name.startswith(stem) and is_table:
                found.append(path)
                break
    return found


def read_raven_table(
    path: str | os.PathLike, file: str, label_column: str = ""
) -> tuple[list[Annotation], list[tuple[str, str]]]:
    """Returns the annotations of a tab-separated Raven table, and origin and reason for each unusable line.

    Raven writes a selection once for each view; it is read once. `file` is the recording's name. Of a table
    over several files, the selections in this one are read.
    """
    try:
        return _load_raven_table(Path(path), file, label_column, NameIndex([str(file)]))
    except ValueError as error:
        return [], [(Path(path).name, str(error))]


def _load_raven_table(
    path: Path, file: str, label_column: str, known: NameIndex
) -> tuple[list[Annotation], list[tuple[str, str]]]:
    """Returns the annotations of a Raven table; raises a ValueError with the reason if it is unusable.

    `known` are all recordings.
    """
    try:
        table = tables.read_table(path, label_column)
    except (OSError, ValueError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    missing = [name for name in ("start", "end", "label") if name not in table.columns]
    if missing == ["label"] and not table.lines:
        missing = []
    if missing:
        names = [label_column if n == "label" and label_column else n for n in missing]
        raise ValueError(f"it has no column {', '.join(names)}")
    lines, elsewhere = tables.select_file(table.lines, file, known)
    skipped = [(f"{path.name}, line {number}", f"it is in {other}") for number, other in elsewhere]
    rows: list[Annotation] = []
    for number, cells in tables.drop_views(lines):
        origin = f"{path.name}, line {number}"
        _parse_row({**cells, "file": file}, origin, table.is_raven, rows, skipped)
    return rows, skipped


def read_csv_table(
    path: str | os.PathLike,
    label_column: str = "",
    owner: str = "",
    flag: str = "--config.audio.annotations=",
) -> Annotations:
    """Reads annotations of many recordings from a table; keeps their names as they are written.

    A table that names no recordings, or has no rows, belongs to the recording `owner`, '' if there is none.
    Messages have the `flag` before the path.

    Raises:
        UserError: if the file cannot be read, a column is missing, or a recording is in two splits.
    """
    path = Path(path).expanduser()
    try:
        table = tables.read_table(path, label_column)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{flag}{path} cannot be read: {reason}.") from error
    if "file" in table.columns and not table.is_empty:
        owner = ""
    for name in ("start", "end", "label") if owner else ("file", "start", "end", "label"):
        if name not in table.columns:
            known = [label_column] if name == "label" and label_column else table.names[name]
            raise UserError(f"{flag}{path} has no column {name}: call it {' or '.join(known)}.")
    rows, skipped, files, splits = [], [], {owner: None} if owner else {}, {}
    for number, cells in tables.drop_views(table.lines):
        cells = {**cells, "file": owner} if owner else cells
        if _parse_row(cells, f"{path.name}, line {number}", table.is_raven, rows, skipped):
            files[cells["file"]] = None
            file, split = cells["file"], cells.get("split", "").lower()
            if split and splits.setdefault(file, split) != split:
                raise UserError(
                    f"{flag}{path}: {file} is in two splits, {splits[file]} and "
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
    expression, name = compile_pattern(pattern, "label_pattern"), normalize(name)
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


def _split_sources(source: str) -> list[Path]:
    """Returns the paths in a list between commas; a path may have a comma itself."""
    if Path(source).expanduser().exists():
        return [Path(source).expanduser()]
    return [Path(word.strip()).expanduser() for word in source.split(",") if word.strip()]


def _read_source(source: Path, label_column: str, known: NameIndex) -> Annotations:
    """Reads a table, or all those in a folder, of which the unusable ones are listed."""
    if not source.is_dir():
        return read_csv_table(source, label_column, known.find_owners([source])[source])
    found, skipped = [], []
    paths = [path for path in list_files(source) if path.suffix.lower() in TABLE_SUFFIXES]
    owners, repeated = known.find_owners(paths), corrections.find_repeated(paths)
    for path in paths:
        name = path.relative_to(source).as_posix()
        if path in repeated:
            skipped.append((name, repeated[path]))
            continue
        try:
            found.append(read_csv_table(path, label_column, owners[path]))
        except UserError as error:
            reason = str(error).removeprefix(f"--config.audio.annotations={path} ")
            skipped.append((name, reason.removesuffix(".")))
    if not found:
        first = (
            f"{': '.join(skipped[0])}." if skipped else f"It has no {', '.join(TABLE_SUFFIXES)}."
        )
        raise UserError(
            f"--config.audio.annotations={source}: none of {count_noun(len(paths), 'table')} in it can be "
            f"used. {first}"
        )
    joined = _join_tables(found, str(source))
    return dataclasses.replace(joined, skipped=[*skipped, *joined.skipped])


def _join_tables(found: Sequence[Annotations], source: str) -> Annotations:
    """Returns several tables as one."""
    splits: dict[str, str] = {}
    for table in found:
        for file, split in table.splits.items():
            if splits.setdefault(file, split) != split:
                raise UserError(
                    f"--config.audio.annotations={source}: {file} is in two splits, {splits[file]} and "
                    f"{split}; windows of one recording stay together."
                )
    return Annotations(
        [row for table in found for row in table.rows],
        list(dict.fromkeys(file for table in found for file in table.files)),
        splits,
        [item for table in found for item in table.skipped],
    )


def match_recordings(table: Annotations, folder: Path, names: Sequence[str]) -> Annotations:
    """Replaces the files of a table by names of recordings; see `matching.match_files`."""
    matched, skipped = matching.match_files(table.files, folder, names)
    rows = [
        dataclasses.replace(row, file=matched[row.file])
        for row in table.rows
        if row.file in matched
    ]
    splits = {matched[file]: split for file, split in table.splits.items() if file in matched}
    files = list(dict.fromkeys(matched.values()))
    return Annotations(rows, files, splits, [*table.skipped, *skipped])


def _parse_row(
    cells: dict[str, str],
    origin: str,
    is_raven: bool,
    rows: list[Annotation],
    skipped: list[tuple[str, str]],
) -> bool:
    """Appends the annotation of a row to `rows`, or the reason to `skipped`; returns whether it is usable."""
    kind = cells.get("kind", "").lower()
    try:
        start, end = tables.parse_interval(cells, is_raven)
        if not cells["label"]:
            raise ValueError("it has no label")
        if not cells["file"]:
            raise ValueError("it names no file")
        if kind not in _KINDS:
            raise ValueError(f"'{kind}' is neither positive nor negative nor uncertain")
    except ValueError as error:
        skipped.append((origin, str(error)))
        return False
    band = (parse_number(cells.get(name, "")) for name in ("low", "high"))
    score = parse_number(cells.get("score", ""))
    label, positive = normalize(cells["label"]), _KINDS[kind]
    place, is_clip = (cells["file"], start, end), "clip" in cells
    rows.append(Annotation(*place, label, positive, *band, origin, score, is_clip))
    return True


def _list_texts(folder: Path) -> list[str]:
    """Returns the names in a folder that end in .txt, sorted after `normalize`."""
    names = (name for name in os.listdir(folder) if name.lower().endswith(".txt"))
    return sorted(names, key=normalize)
