"""How well each class is recognised, at the decisions taken and at every threshold: a table and a figure."""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import precision_recall_curve

from experiments.core import files
from experiments.figures.style import (
    BEST,
    INK,
    LINE,
    TRAIN,
    VALIDATION,
    WRONG,
    new_figure,
    save,
    short,
    style_axes,
)
from experiments.tasks.metrics import precision_recall_f1

HEADER = (
    "label",
    "n",
    "precision",
    "recall",
    "f1",
    "average_precision",
    "best_threshold",
    "f1_at_best",
)
TOLD_APART = 8  # classes that have colours of their own in one panel
MOST_PAIRS = 20_000_000  # of examples and classes, whose scores are sorted together
_COLOURS = (VALIDATION, WRONG, BEST, "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", TRAIN)


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Precision over recall as the threshold rises.

    Attributes:
        precision: falling thresholds' precisions, one more than thresholds: the last is 1.
        recall: their recalls, the last is 0.
        thresholds: rising; whatever scores as much is said to be of the class.
        average_precision: sum over the thresholds of (R_n - R_(n-1)) P_n.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    average_precision: float

    def best(self) -> tuple[float, float]:
        """The threshold with the highest F1, of equals the highest, and that F1."""
        precision, recall = self.precision[:-1], self.recall[:-1]
        f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
        at = f1.size - 1 - int(f1[::-1].argmax())
        return float(self.thresholds[at]), float(f1[at])


def write(
    workdir: str | os.PathLike,
    classes: Sequence[str],
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float = 0.5,
) -> None:
    """Writes `per_class.csv` and `figures/pr_curves.png`.

    The table has a row for each class: label, n (its examples), precision, recall and f1 of the decisions,
    average_precision, best_threshold (where F1 is highest on these very examples: an upper bound, no
    estimate) and f1_at_best. Cells of a class without examples are empty.

    Args:
        workdir: the run's.
        classes: C names.
        labels: int `[N]`, of which the class with the highest score is what was decided; or float `[N, C]`,
            1 and 0, NaN where it is not known, of which each is decided by the threshold.
        scores: `[N, C]`, 0 to 1; NaN counts as 0.
        threshold: of the decisions; nothing where each example has one class.
    """
    workdir = Path(workdir)
    labels, scores = np.asarray(labels), np.nan_to_num(np.asarray(scores, np.float32))
    found = [curve(truth, score) for truth, score in columns(labels, scores)]
    files.write_csv(
        workdir / "per_class.csv", HEADER, _rows(classes, labels, scores, found, threshold)
    )
    together = None
    if scores.size <= MOST_PAIRS:
        parts = list(columns(labels, scores))
        together = curve(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    draw(classes, found, together, workdir / "figures" / "pr_curves.png")


def columns(labels: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each class: whether the examples of which it is known are of it, and their scores."""
    for number in range(scores.shape[1]):
        if labels.ndim == 1:
            yield labels == number, scores[:, number]
        else:
            known = ~np.isnan(labels[:, number])
            yield labels[known, number] > 0.5, scores[known, number]


def curve(truth: np.ndarray, scores: np.ndarray) -> Curve | None:
    """Precision and recall at every threshold; None where nothing is of the class.

    Args:
        truth: bool `[N]`.
        scores: `[N]`.
    """
    if not truth.any():
        return None
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    # What scikit-learn's average_precision_score does, which would sort the scores again.
    average = -np.sum(np.diff(recall) * precision[:-1])
    return Curve(precision, recall, thresholds, float(average))


def _rows(
    classes: Sequence[str],
    labels: np.ndarray,
    scores: np.ndarray,
    found: Sequence[Curve | None],
    threshold: float,
) -> Iterator[list[object]]:
    decided = scores.argmax(axis=1) if labels.ndim == 1 else None
    counts = []
    for number, (truth, score) in enumerate(columns(labels, scores)):
        said = score >= threshold if decided is None else decided == number
        counts.append([int(np.sum(x)) for x in (truth & said, said, truth)])
    hits, predicted, actual = np.array(counts).T
    measured = precision_recall_f1(hits, predicted, actual)
    for number, (name, line) in enumerate(zip(classes, found, strict=True)):
        values = [float(measured[key][number]) for key in ("precision", "recall", "f1")]
        values += [line.average_precision, *line.best()] if line else [math.nan] * 3
        yield [name, actual[number], *("" if math.isnan(v) else f"{v:.6f}" for v in values)]


def draw(
    classes: Sequence[str],
    found: Sequence[Curve | None],
    together: Curve | None,
    path: str | os.PathLike,
) -> None:
    """Draws precision over recall of each class, and of all decisions taken together.

    Args:
        classes: the names.
        found: their curves; None for a class without examples.
        together: the micro-averaged curve; None leaves it out.
        path: the PNG to write. Of more than 8 classes all are grey but the worst and the best.
    """
    order = [n for n, line in enumerate(found) if line is not None]
    order.sort(key=lambda n: -found[n].average_precision)
    named = order
    caption = "AP: average precision, the area below the curve."
    if len(order) > TOLD_APART:
        half = TOLD_APART // 2
        named = [*order[:half], *order[-half:]]
        caption += f" Grey: the other {len(order) - len(named)} classes."
    if empty := len(found) - len(order):
        caption += f" {empty} of {len(found)} classes have no example here."
    mean = np.mean([found[n].average_precision for n in order]) if order else math.nan
    title = f"Precision and recall: mean average precision {mean:.3f}"
    figure = new_figure(8.4, 5.6, title, caption)
    axes = figure.subplots()
    style_axes(axes, xlabel="recall", ylabel="precision")
    if together:
        label = f"all together: AP {together.average_precision:.3f}"
        _step(axes, together, color=INK, linewidth=2.2, label=label, zorder=3)
    for number in order:
        if number not in named:
            _step(axes, found[number], color=LINE, linewidth=0.6, zorder=1)
    for colour, number in zip(_COLOURS, named, strict=False):
        label = f"{short(classes[number])}: AP {found[number].average_precision:.3f}"
        _step(axes, found[number], color=colour, linewidth=1.2, label=label, zorder=2)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    if order:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    save(figure, path)


def _step(axes: Axes, line: Curve, **style) -> None:
    """One curve, of at most a thousand points: no more can be told apart."""
    at = np.unique(np.linspace(0, line.recall.size - 1, 1000).round().astype(int))
    axes.plot(line.recall[at], line.precision[at], drawstyle="steps-post", **style)
