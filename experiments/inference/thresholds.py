"""Thresholds of the classes: the lowest score with which each is detected."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.audio.annotation_formats import parse_number
from experiments.audio.matching import normalize
from experiments.audio.tables import read_records
from experiments.core.errors import UserError, suggest_nearest

TABLES = {"run": "per_class.csv", "precision": "thresholds.csv"}
"""The tables of a run that words stand for: the best F1 on test, and a precision on validation recordings."""
_COLUMNS = ("threshold", "best_threshold")
_DEFAULT = 0.5


def make_thresholds(
    classes: Sequence[str], run: Path, threshold: float | str, without: Sequence[str] = ()
) -> np.ndarray:
    """Returns the lowest score of each class, `[C]`; infinity for those that are left out.

    Args:
        classes: C names.
        run: the folder of the run.
        threshold: a number for all classes; 'run' for the best of each in the run's `per_class.csv`;
            'precision' for those in its `thresholds.csv`; or the path of such a table, with the columns
            label and threshold.
        without: classes to leave out.
    """
    thresholds = _read_thresholds(classes, run, str(threshold))
    for name in without:
        if name not in classes:
            hint = suggest_nearest(name, classes)
            raise UserError(f"--without={name}: the run has no such class{hint}")
        thresholds[list(classes).index(name)] = np.inf
    if np.isinf(thresholds).all():
        raise UserError("--without leaves no class to predict.")
    return thresholds


def _read_thresholds(classes: Sequence[str], run: Path, threshold: str) -> np.ndarray:
    try:
        number = float(threshold)
    except ValueError:
        if threshold in TABLES:
            return _read_table(classes, run / TABLES[threshold], threshold)
        if threshold.lower().endswith(".csv"):
            return _read_table(classes, Path(threshold).expanduser(), threshold)
        number = -1.0
    if not 0 <= number <= 1:
        raise UserError(
            f"--threshold={threshold}: choose 0 to 1, run for those in its per_class.csv, precision for "
            "those in its thresholds.csv, or a table such as these."
        )
    return np.full(len(classes), number, np.float32)


def _read_table(classes: Sequence[str], path: Path, threshold: str) -> np.ndarray:
    """Returns the thresholds in a table; a class with an empty cell has the usual one."""
    try:
        rows = read_records(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--threshold={threshold}: {path} cannot be read ({error}).") from error
    column = next((name for name in _COLUMNS if rows and name in rows[0]), "")
    if not column or "label" not in rows[0]:
        raise UserError(
            f"--threshold={threshold}: {path} is no table with the columns label and {' or '.join(_COLUMNS)}."
        )
    cells = {normalize(row["label"]): row[column].strip() for row in rows}
    numbers = []
    for name in classes:
        if normalize(name) not in cells:
            raise UserError(f"--threshold={threshold}: {path} has no threshold of {name}.")
        cell = cells[normalize(name)]
        number = parse_number(cell) if cell else _DEFAULT
        if number is None or not 0 <= number <= 1:
            raise UserError(
                f"--threshold={threshold}: {path} has '{cell}' for {name}, which is not 0 to 1."
            )
        numbers.append(number)
    return np.array(numbers, np.float32)
