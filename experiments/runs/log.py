"""The file `metrics.jsonl` of a run: one JSON object a line with `step`, `split`, then metrics."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.core.checked_json import parse_json
from experiments.core.errors import UserError
from experiments.core.files import MEGABYTE, read_small_file, replace_file, to_json
from experiments.runs.integrity import warn
from experiments.runs.schema import ROW
from experiments.runs.writers import Writer

METRICS_FILE = "metrics.jsonl"
MAX_BYTES = 512 * MEGABYTE


class MetricLog:
    """Appends rows to `metrics.jsonl`, and passes their scalars to other writers.

    Every line goes to the operating system as soon as it is written, so that a killed process tears at
    most its last line. Only one process may have the log of a workdir open.
    """

    def __init__(
        self, workdir: str | os.PathLike, resume_step: int, writers: Sequence[Writer] = ()
    ):
        """Opens the log, after dropping the rows that a continued run will write again.

        Args:
            workdir: the run's folder; created if it is missing.
            resume_step: the step that the run continues from. Rows of later steps are dropped, rows of this
                step stay. -1 begins an empty log.
            writers: receive the same scalars.

        Raises:
            UserError: if a line other than the last is damaged.
        """
        self.path = Path(workdir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_rows(self.path)
        if rows and resume_step < 0:
            last = max(row["step"] for row in rows)
            warn(
                f"{self.path} has rows up to step {last:,} and no checkpoint is left: it begins again"
            )
        if not rows and resume_step > 0:
            warn(f"{self.path} has no row before step {resume_step:,}: the curves begin there")
        if self.path.exists():
            # The test row has the best step but comes last: a continued run writes it again.
            kept = [r for r in rows if r["step"] <= resume_step and r.get("split") != "test"]
            with replace_file(self.path) as temporary:
                temporary.write_text("".join(map(_format_line, kept)), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)
        self._writers = list(writers)

    def write(self, step: int, split: str, metrics: Mapping[str, object]) -> None:
        """Appends one row of a split: 'train', 'validation' or 'test'.

        Metrics are scalars of Python, NumPy or JAX. NaN and infinity, which JSON lacks, become null.

        Raises:
            ValueError: if a metric is called `step` or `split`.
        """
        if clash := {"step", "split"} & set(metrics):
            raise ValueError(f"a metric cannot be called {sorted(clash)}")
        values = {name: to_json(value) for name, value in metrics.items()}
        self._file.write(_format_line({"step": int(step), "split": split, **values}))
        # bool is an int, but not a curve; None and lists are no curves either.
        scalars = {f"{split}/{n}": v for n, v in values.items() if isinstance(v, int | float)}
        for writer in self._writers:
            writer.write(int(step), scalars)

    def rows(self) -> list[dict]:
        """Returns all rows written so far, by earlier runs in the same workdir too."""
        return read_rows(self.path)

    def close(self) -> None:
        """Closes the file and the writers; closing twice is harmless."""
        self._file.close()
        while self._writers:
            self._writers.pop().close()


def read_rows(path: Path) -> list[dict]:
    """Reads a `metrics.jsonl`: one dictionary per line, without a torn last line; none if it is missing.

    Raises:
        UserError: if it cannot be read, or a line other than the last is not a JSON object with a `step`.
    """
    try:
        content = read_small_file(path, MAX_BYTES)
    except FileNotFoundError:
        return []
    # A power cut can leave bytes that are not text: such a line is torn, not fatal.
    text = content.decode("utf-8", errors="replace")
    lines = text.removesuffix("\n").split("\n") if text else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse_json(line, ROW))
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number} is damaged ({error}): {line[:60]!r}. Remove that line, or start in "
                "another --workdir."
            ) from None
    return rows


def _format_line(row: Mapping) -> str:
    return json.dumps(to_json(row), allow_nan=False) + "\n"
