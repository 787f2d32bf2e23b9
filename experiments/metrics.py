"""What a run measured: rows in `metrics.jsonl`, and sums that are taken on the device."""

import contextlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.boards import Board
from experiments.errors import UserError

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
            with replacing(self.path) as temporary:
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
        row = {"step": int(step), "split": split, **{k: plain(v) for k, v in metrics.items()}}
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


def plain(value: object) -> object:
    """The nearest thing that JSON can say.

    Args:
      value: Python, numpy or jax scalars and arrays, and dictionaries, lists, tuples and sets
        of them. Anything else becomes its `str`.

    Returns:
      Python's own dict, list, str, bool, int, float and None. NaN and infinity become None.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file that takes the place of `path` at the end: all of it, or nothing.

    Args:
      path: the file to write or to replace; its folder is created where it is missing.

    Yields:
      The path to write to. On an exception it is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hosts that share the folder may have processes of one number: in a container it is often 1.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def classification_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """What one batch adds to the loss, the accuracies and the counts of each class.

    Args:
      logits: [B, C] floats.
      labels: [B] integers, 0 to C-1.
      mask: [B], true (or 1) where an example counts and false (or 0) where it is padding,
        whose logits and label may be anything.

    Returns:
      float32 scalars: `loss` (sum of cross-entropies), `correct`, `correct5` (the true class
      is among the best min(5, C); of equal logits the lower index is better, as in argmax)
      and `count`; float32 [C]: `hits` (examples of a class that were taken for it), `predicted`
      (all that were taken for it) and `actual` (all of it). An example with a NaN among its
      logits counts as wrong, and as taken for no class.
    """
    counts = mask.astype(bool)
    logits = logits.astype(jnp.float32)
    labels = jnp.where(counts, labels, jnp.zeros_like(labels))
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

    of_truth = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    lower_index = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, :] < labels[:, None]
    better = (logits > of_truth) | ((logits == of_truth) & lower_index)
    rank = jnp.sum(better, axis=-1, dtype=jnp.int32)
    # NaN is neither greater nor equal: without this a diverged model would look perfect.
    valid = counts & ~jnp.any(jnp.isnan(logits), axis=-1)

    def of_each_class(classes: jax.Array, chosen: jax.Array) -> jax.Array:
        numbers = jnp.zeros(logits.shape[-1], jnp.float32)
        return numbers.at[classes].add(chosen.astype(jnp.float32))

    return {
        "loss": jnp.sum(jnp.where(counts, losses, jnp.zeros_like(losses))),
        "correct": jnp.sum(valid & (rank < 1), dtype=jnp.float32),
        "correct5": jnp.sum(valid & (rank < 5), dtype=jnp.float32),
        "count": jnp.sum(counts, dtype=jnp.float32),
        "hits": of_each_class(labels, valid & (rank < 1)),
        "predicted": of_each_class(jnp.argmax(logits, axis=-1), valid),
        "actual": of_each_class(labels, counts),
    }


def means(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The metrics that belong to sums over one or many batches.

    Args:
      sums: what `classification_sums` gave, added up; `count` is not zero.

    Returns:
      `loss`, `accuracy`, `top5`, the means over the classes that have examples of `precision`,
      `recall` and `f1`, and the shares `top1_error` and `top5_error` that the accuracies leave.
    """
    accuracy, top5 = (float(sums[name] / sums["count"]) for name in ("correct", "correct5"))
    of_classes = precision_recall_f1(sums["hits"], sums["predicted"], sums["actual"])
    return {
        "loss": float(sums["loss"] / sums["count"]),
        "accuracy": accuracy,
        "top5": top5,
        **{name: float(np.nanmean(values)) for name, values in of_classes.items()},
        "top1_error": 1 - accuracy,
        "top5_error": 1 - top5,
    }


def precision_recall_f1(
    hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray
) -> dict[str, np.ndarray]:
    """How well each class is recognised.

    Args:
      hits: [C] examples of a class that were taken for it.
      predicted: [C] all that were taken for it.
      actual: [C] all of it.

    Returns:
      `precision` = hits / predicted, `recall` = hits / actual and `f1` = 2 hits / (predicted +
      actual), their harmonic mean, float64 [C]. A class that is never predicted has a precision
      of 0; one without examples is NaN in all three.
    """
    hits, predicted, actual = (np.asarray(x, np.float64) for x in (hits, predicted, actual))
    parts = {"precision": predicted, "recall": actual, "f1": (predicted + actual) / 2}
    return {
        name: np.where(actual > 0, hits / np.where(of > 0, of, 1), np.nan)
        for name, of in parts.items()
    }


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class was taken for each class.

    Args:
      labels: [N] integers, the truth.
      predictions: [N] integers.
      num_classes: C; all labels and predictions are 0 to C-1.

    Returns:
      [C, C] int64: rows are the truth, columns the predictions.

    Raises:
      ValueError: the lengths differ, or a class is out of range.
    """
    labels = np.asarray(labels).astype(np.int64).ravel()
    predictions = np.asarray(predictions).astype(np.int64).ravel()
    if labels.shape != predictions.shape:
        raise ValueError(f"{labels.size} labels, but {predictions.size} predictions")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.size and not (0 <= values.min() and values.max() < num_classes):
            raise ValueError(
                f"{name} are {values.min()} to {values.max()}, not 0 to {num_classes - 1}"
            )
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)
