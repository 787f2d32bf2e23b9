"""Writes and reads `metrics.jsonl`, the rows that a run measured."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.core.errors import UserError
from experiments.core.files import replace_file, to_json
from experiments.runs.writers import Board

METRICS_FILE = "metrics.jsonl"


class MetricLog:
    """The file `metrics.jsonl` of one run: one JSON object a line, `step`, `split`, then metrics.

    Every line is handed to the operating system whole as soon as it is written, so that a killed
    process tears at most its last line. Only one process may hold the log of a workdir.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int, boards: Sequence[Board] = ()):
        """Opens the log, first dropping what a run that continues will write again.

        Args:
          workdir: the folder of the run; created where it is missing.
          resume_step: the step the run continues from. Rows of later steps and a torn last line
            are dropped; rows of this step stay. -1 begins an empty log.
          boards: where the same scalars go besides.

        Raises:
          UserError: a line other than the last is no JSON object with a `step`.
        """
        self.path = Path(workdir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            # The test row is of the best step, but comes last: a run that goes on writes it again.
            kept = [
                row
                for row in read_rows(self.path)
                if row["step"] <= resume_step and row.get("split") != "test"
            ]
            with replace_file(self.path) as temporary:
                temporary.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)
        self._boards = list(boards)

    def write(self, step: int, split: str, metrics: Mapping[str, object]) -> None:
        """Appends one row.

        Args:
          step: the number of finished training steps.
          split: 'train', 'validation' or 'test'.
          metrics: name to scalar (Python, numpy or jax). NaN and infinity, which JSON cannot
            say, are written as null.

        Raises:
          ValueError: a metric is called `step` or `split`.
        """
        if clash := {"step", "split"} & set(metrics):
            raise ValueError(f"a metric cannot be called {sorted(clash)}")
        row = {"step": int(step), "split": split, **{k: to_json(v) for k, v in metrics.items()}}
        self._file.write(_line(row))
        scalars = {
            f"{split}/{name}": value
            for name, value in row.items()
            # bool is an int, but no curve.
            if isinstance(value, int | float) and name != "step"
        }
        for board in self._boards:
            board.write(row["step"], scalars)

    def rows(self, split: str | None = None) -> list[dict]:
        """The rows written so far, earlier runs of the same workdir included.

        Args:
          split: only the rows of this split; None for all.

        Returns:
          One dictionary per row, in the order written; null is None.
        """
        return [row for row in read_rows(self.path) if split in (None, row.get("split"))]

    def close(self) -> None:
        """Closes the files. Closing twice is harmless."""
        self._file.close()
        while self._boards:
            self._boards.pop().close()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_rows(path: str | os.PathLike) -> list[dict]:
    """The rows of a `metrics.jsonl`; a torn last line is left out.

    Args:
      path: the file. A missing one has no rows.

    Returns:
      One dictionary per line; null is None.

    Raises:
      UserError: a line other than the last is no JSON object with a `step`.
    """
    path = Path(path)
    if not path.exists():
        return []
    # A power cut can leave bytes that are no text at all: such a line is torn, not fatal.
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.removesuffix("\n").split("\n") if text else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"] + 0  # a scalar, a list or a missing step is not a row
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number} is damaged: {line[:60]!r}. Remove that line, or start "
                "in another --workdir."
            ) from None
        rows.append(row)
    return rows


def _line(row: Mapping) -> str:
    """One row as one line."""
    return json.dumps(row, allow_nan=False) + "\n"
