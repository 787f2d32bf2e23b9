"""The user's own pictures by a table: a CSV with a picture and its label, or several labels, in each row."""

import csv
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.core.errors import UserError
from experiments.core.text import read_text
from experiments.core.words import count_noun
from experiments.data import masks, pictures, splits
from experiments.data.dataset import Dataset

PATH_COLUMNS = ("path", "file", "filename", "image", "picture")
LABEL_COLUMNS = ("label", "labels", "class", "classes")
SPLIT_COLUMN = "split"
NONE = "none"
"""Stands for no label in a table whose rows may have several."""

_LAYOUT = (
    f"Its first line names the columns: {' or '.join(PATH_COLUMNS)} for the pictures (relative to the "
    f"table's folder), {' or '.join(LABEL_COLUMNS)} for the labels (several separated by ';') and, if there "
    f"are splits, {SPLIT_COLUMN} with {', '.join(splits.NAMES)}."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table that can be used.

    Attributes:
        line: number of its line, from 1.
        path: the picture.
        name: its path below the table's folder, or else as the table names it.
        labels: its labels, without repetitions.
        split: its split, '' in a table without splits.
    """

    line: int
    path: Path
    name: str
    labels: tuple[str, ...]
    split: str


def load_table(file: Path, config: ConfigDict, seed: int) -> Dataset:
    """Returns the pictures that a table lists, as uint8 RGB.

    A label is a class number, or, if any row has several labels, one number for each class. Rows without a
    usable picture and label are in `skipped`.
    """
    rows, skipped = read_rows(file)
    several = any(len(row.labels) > 1 for row in rows)
    if several:
        rows = [
            dataclasses.replace(r, labels=() if r.labels == (NONE,) else r.labels) for r in rows
        ]
    files = [row.path for row in rows]
    checked, unusable = pictures.check_all(file.parent, files, pictures.check_and_digest)
    skipped += unusable
    rows = [row for row in rows if row.path in checked]
    train = [row for row in rows if row.split in ("", "train")]
    classes = sort_labels({label for row in train for label in row.labels})
    if len(classes) < 2:
        why = ""
        if skipped:
            why = f" (skipped {count_noun(len(skipped), 'row')}, such as {': '.join(skipped[0])})"
        raise UserError(
            f"{file} has usable training pictures of {count_noun(len(classes), 'label')}{why}; at least two "
            f"labels are needed. {_LAYOUT}"
        )
    number_of = {name: number for number, name in enumerate(classes)}
    known, strange = [], []
    for row in rows:
        (known if number_of.keys() >= set(row.labels) else strange).append(row)
    for row in strange:
        unknown = next(label for label in row.labels if label not in number_of)
        skipped.append((row.name, f"no training picture has its label {unknown}"))
    of_split = {
        name: [row for row in known if (row.split or "train") == name] for name in splits.NAMES
    }
    pools = {
        split: _make_pool(members, number_of, several, checked)
        for split, members in of_split.items()
        if members
    }
    parts, notes = splits.make_splits(file.stem, config, seed, **pools)
    if several:
        notes = ["Pictures may have several labels, so that all of them are tags.", *notes]
    shape = pictures.get_common_shape({size for size, _ in checked.values()})
    return Dataset(file.stem, parts, classes, shape, notes, skipped)


def sort_labels(labels: set[str]) -> list[str]:
    """Returns labels in order: by value if all are whole numbers, otherwise by name."""
    if all(label.isascii() and label.isdigit() and len(label) < 19 for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def read_rows(file: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """Returns the usable rows of a table, and name and reason of the others.

    Raises:
        UserError: if the file is no such table.
    """
    try:
        lines = list(_read_lines(read_text(file)))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table: {error}. {_LAYOUT}") from error
    if not lines:
        raise UserError(f"{file} is empty. {_LAYOUT}")
    columns = _find_columns(file, lines[0][1])
    skipped: list[tuple[str, str]] = []
    rows: dict[str, Row] = {}
    contradicted: dict[str, str] = {}
    for line, cells in lines[1:]:
        row = _parse_row(file, line, cells, columns)
        if isinstance(row, str):
            skipped.append((f"{file.name}, line {line}", row))
            continue
        first = rows.setdefault(row.name, row)
        if first is row:
            continue
        same = (set(first.labels), first.split) == (set(row.labels), row.split)
        reason = f"{row.name} is in line {first.line} too"
        skipped.append((f"{file.name}, line {line}", reason))
        if not same:
            contradicted[row.name] = f"lines {first.line} and {line} differ in its label or split"
    skipped += contradicted.items()
    return [row for name, row in rows.items() if name not in contradicted], skipped


def _read_lines(text: str) -> list[tuple[int, list[str]]]:
    """Returns the number of the last line and the cells of each row that is not empty."""
    head = text.lstrip().partition("\n")[0]
    delimiter = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]


def _find_columns(file: Path, header: Sequence[str]) -> dict[str, int]:
    """Returns the position of the columns `path`, `label` and, if there is one, `split`."""
    names = [name.strip().lower() for name in header]
    columns = {}
    for column, known in (("path", PATH_COLUMNS), ("label", LABEL_COLUMNS), ("split", ("split",))):
        places = [place for place, name in enumerate(names) if name in known]
        if len(places) > 1:
            both = " and ".join(header[place] for place in places)
            raise UserError(f"{file} has the columns {both}; remove or rename all but one.")
        if places:
            columns[column] = places[0]
        elif column != "split":
            raise UserError(f"{file} has no column {' or '.join(known)}. {_LAYOUT}")
    return columns


def _parse_row(
    file: Path, line: int, cells: Sequence[str], columns: Mapping[str, int]
) -> Row | str:
    """Returns a row, or the reason why it cannot be used."""
    if ends := sum(cell.count("\n") for cell in cells):
        return f"the {ends} lines before it are in one cell: a quotation mark is not closed"
    values = {name: cells[at].strip() if at < len(cells) else "" for name, at in columns.items()}
    name, split = values["path"], values.get("split", "")
    labels = tuple(
        dict.fromkeys(filter(None, (part.strip() for part in values["label"].split(";"))))
    )
    if not name:
        return "it names no picture"
    if not labels:
        return f"{name} has no label; where none applies write {NONE}"
    if "split" in columns:
        if split.lower() not in splits.ALIASES:
            return f"{name} has the split '{split}'; write {', '.join(splits.NAMES)}"
        split = splits.ALIASES[split.lower()]
    if "\0" in name:
        return "the name of its picture has a NUL character"
    path = file.parent / name
    if not os.path.isfile(path) and "\\" in name:
        path = file.parent / name.replace("\\", "/")
    path = Path(os.path.normpath(path))  # one file has one name
    if path.is_relative_to(file.parent):
        name = path.relative_to(file.parent).as_posix()
    return Row(line, path, name, labels, split)


def _make_pool(
    rows: Sequence[Row],
    number_of: Mapping[str, int],
    several: bool,
    checked: Mapping[Path, tuple[tuple[int, int], int]],
) -> splits.Pool:
    present = np.zeros((len(rows), len(number_of)), bool)
    for row, one in enumerate(rows):
        present[row, [number_of[label] for label in one.labels]] = True
    labels = present.astype(np.float32) if several else present.argmax(axis=1).astype(np.int32)
    source = pictures.PictureFiles(
        [row.path for row in rows],
        labels,
        [checked[row.path][1] for row in rows],
        [row.name for row in rows],
    )
    if several:  # A row without a label is in a stratum of its own.
        strata = masks.compute_strata(np.column_stack([present, ~present.any(axis=1)]))
        return splits.Pool(source, strata)
    return splits.Pool(source, labels)
