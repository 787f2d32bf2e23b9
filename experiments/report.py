"""What is left in the folder of a finished run: figures, and small files for people and scripts."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

from experiments.figures import (
    attention_by_class,
    choose_examples,
    confusion,
    prediction_grid,
    training_curves,
)
from experiments.metrics import plain, replacing

__all__ = [
    "attention_by_class",
    "choose_examples",
    "confusion",
    "prediction_grid",
    "training_curves",
    "write_json",
    "write_skipped",
]


def write_json(path: str | os.PathLike, obj: object) -> None:
    """Writes a JSON file whole or not at all (`summary.json`, `config.json`).

    Args:
      path: the file; its folder is created where it is missing.
      obj: dictionaries, lists and scalars (Python, numpy or jax). Keys keep their order; NaN
        and infinity become null; what JSON does not know (a path, a type) becomes its `str`.
    """
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_skipped(
    workdir: str | os.PathLike, skipped: Sequence[tuple[str | os.PathLike, str]]
) -> Path | None:
    """Writes `skipped.csv`: which files of a data set were left out, and why.

    Args:
      workdir: the folder of the run.
      skipped: file and reason, one pair per file.

    Returns:
      The path of the table, or None where nothing was skipped and nothing is written.
    """
    if not skipped:
        return None
    path = Path(workdir) / "skipped.csv"
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "reason"])
        table.writerows((str(name), reason) for name, reason in skipped)
    return path
