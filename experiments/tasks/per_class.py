"""Metrics of each class: precision and recall of the predictions, and at every threshold."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import precision_recall_curve

from experiments.core import files
from experiments.figures.pr_curves import PRCurve, draw_pr_curves
from experiments.tasks.metrics import compute_precision_recall_f1

MEASURES = ("precision", "recall", "f1")
HEADER = ("label", "n", *MEASURES, "average_precision", "best_threshold", "f1_at_best")
MAX_POOLED = 20_000_000  # pairs of an example and a class, whose scores are sorted together


def split_by_class(
    labels: np.ndarray, scores: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for each class, of the examples with a known label: whether they belong to it, and their scores.

    The labels are int `[N]`, or float `[N, C]`, 1 and 0, NaN where unknown; the scores `[N, C]`.
    """
    for number in range(scores.shape[1]):
        if labels.ndim == 1:
            yield labels == number, scores[:, number]
        else:
            known = ~np.isnan(labels[:, number])
            yield labels[known, number] > 0.5, scores[known, number]


def compute_pr_curve(truth: np.ndarray, scores: np.ndarray) -> PRCurve | None:
    """Returns precision and recall at every threshold; None if no example belongs to the class."""
    if not truth.any():
        return None
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    # As scikit-learn's average_precision_score, which would sort the scores again.
    average = -np.sum(np.diff(recall) * precision[:-1])
    return PRCurve(precision, recall, thresholds, float(average))


def round_down(threshold: float) -> float:
    """Returns a threshold with six digits, at which the very example that it is the score of still counts."""
    return float(np.floor(threshold * 1e6) / 1e6)


def find_best_threshold(curve: PRCurve) -> tuple[float, float]:
    """Returns the threshold with the highest F1, the highest of equals, and that F1."""
    precision, recall = curve.precision[:-1], curve.recall[:-1]
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = f1.size - 1 - int(f1[::-1].argmax())
    return float(curve.thresholds[best]), float(f1[best])


def write_per_class(
    workdir: Path,
    classes: Sequence[str],
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float = 0.5,
) -> None:
    """Writes `per_class.csv` and `figures/pr_curves.png`.

    The table has a row for each class: label, n (its examples), precision, recall and f1 of the predictions,
    average_precision, best_threshold (with the highest F1 on these very examples: an upper bound, not an
    estimate) and f1_at_best. Cells of a class without examples are empty.

    Args:
        workdir: the run's folder.
        classes: C names.
        labels: int `[N]`, of which the class with the highest score is predicted; or float `[N, C]`, 1 and 0,
            NaN where unknown, of which each is predicted by the threshold.
        scores: `[N, C]`, 0 to 1; NaN counts as 0.
        threshold: of the predictions; ignored if each example has one class.
    """
    scores = np.nan_to_num(np.asarray(scores, np.float32))
    parts = list(split_by_class(labels, scores))
    curves = [compute_pr_curve(truth, score) for truth, score in parts]
    if labels.ndim == 1:
        predicted = [scores.argmax(axis=1) == number for number in range(len(classes))]
    else:
        predicted = [score >= threshold for _, score in parts]
    counts = [
        (np.sum(truth & prediction), np.sum(prediction), np.sum(truth))
        for (truth, _), prediction in zip(parts, predicted, strict=True)
    ]
    measured = compute_precision_recall_f1(*np.array(counts).T)
    rows = []
    for number, (name, curve) in enumerate(zip(classes, curves, strict=True)):
        values = [float(measured[key][number]) for key in MEASURES]
        if curve:
            threshold, f1 = find_best_threshold(curve)
            values += [curve.average_precision, round_down(threshold), f1]
        else:
            values += [math.nan] * 3
        cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
        rows.append([name, counts[number][-1], *cells])
    files.write_csv(workdir / "per_class.csv", HEADER, rows)

    pooled = None
    if scores.size <= MAX_POOLED:
        pooled = compute_pr_curve(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    draw_pr_curves(classes, curves, pooled, workdir / "figures" / "pr_curves.png")
