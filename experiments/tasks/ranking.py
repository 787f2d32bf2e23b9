"""Metrics of how well scores rank the examples of each class, and thresholds for a precision."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.tasks.per_class import split_by_class


def compute_ranking(
    labels: np.ndarray, scores: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Returns scikit-learn's average precision and area under the ROC curve, by class and on average.

    Args:
        labels: int `[N]`, or float `[N, C]`, 1 and 0, NaN where unknown.
        scores: `[N, C]`; NaN counts as 0.
        classes: C names.

    Returns:
        `map`, the mean average precision over the classes with examples, which others call cmAP; `auroc`, the
        mean area over the classes with examples of both kinds; `ap` and `class_auroc`, those of each class,
        None where there is none. Means of no class are 0.
    """
    scores = np.nan_to_num(np.asarray(scores, np.float64))
    ap: dict[str, float | None] = {}
    auroc: dict[str, float | None] = {}
    for name, (truth, score) in zip(classes, split_by_class(labels, scores), strict=True):
        some, every = bool(truth.any()), bool(truth.all())
        ap[name] = float(average_precision_score(truth, score)) if some else None
        auroc[name] = float(roc_auc_score(truth, score)) if some and not every else None
    return {"map": _average(ap), "auroc": _average(auroc), "ap": ap, "class_auroc": auroc}


class PrecisionThreshold(NamedTuple):
    """A threshold, and what it achieves on the examples that it was chosen on.

    Attributes:
        threshold: the lowest score that is taken for the class.
        precision, recall: of these predictions.
        predicted: their number.
    """

    threshold: float
    precision: float
    recall: float
    predicted: int


def choose_threshold(
    truth: np.ndarray, scores: np.ndarray, precision: float
) -> PrecisionThreshold | None:
    """Returns the lowest threshold with at least this precision; None if there is none.

    Args:
        truth: bool `[N]`.
        scores: `[N]`; those of -inf are never predicted.
        precision: above 0, up to 1.

    Example:
        >>> truth = np.array([True, True, False, True, False])
        >>> choose_threshold(truth, np.array([0.9, 0.8, 0.7, 0.6, 0.1]), precision=0.7)
        PrecisionThreshold(threshold=0.6, precision=0.75, recall=1.0, predicted=4)
    """
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    if not len(order) or not truth.any():
        return None
    ranked, hits = scores[order], np.cumsum(truth[order])
    # Equal scores are predicted together.
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    reached = last[(hits[last] >= precision * (last + 1) - 1e-9) & (hits[last] > 0)]
    if not len(reached):
        return None
    at = int(reached[-1])
    return PrecisionThreshold(
        float(ranked[at]), float(hits[at] / (at + 1)), float(hits[at] / truth.sum()), at + 1
    )


class Calibration(NamedTuple):
    """The shares of predictions of about one probability that are right.

    Attributes:
        edges: of the bins, `[bins + 1]`.
        counts: number of predictions in each, `[bins]`.
        predicted: their mean probability; NaN without predictions.
        observed: the share of them that is right; likewise.
        error: expected calibration error, sum_b counts_b / N |observed_b - predicted_b|; NaN without any.
    """

    edges: np.ndarray
    counts: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    error: float


def measure_calibration(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 10
) -> Calibration:
    """Returns the calibration of all decisions together, in bins of equal width.

    Args:
        labels: int `[N]`, of which the probability of the predicted class is judged; or float `[N, C]`, 1 and
            0, NaN where unknown, of which each known one is.
        probabilities: `[N, C]`, 0 to 1; NaN counts as 0.
        bins: their number; the last contains 1.

    Source: Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.

    Example:
        >>> labels = np.array([[1.0], [1.0], [0.0], [np.nan]])
        >>> found = measure_calibration(labels, np.array([[0.9], [0.9], [0.9], [0.1]]), bins=2)
        >>> found.counts.tolist(), round(float(found.observed[1]), 3), round(found.error, 3)
        ([0, 3], 0.667, 0.233)
    """
    probabilities = np.nan_to_num(np.asarray(probabilities, np.float64))
    if labels.ndim == 1:
        best = probabilities.argmax(axis=1)
        right, score = best == labels, probabilities.max(axis=1)
    else:
        known = ~np.isnan(labels)
        right, score = labels[known] > 0.5, probabilities[known]
    edges = np.linspace(0, 1, bins + 1)
    owner = np.clip((score * bins).astype(int), 0, bins - 1)
    counts, total, hits = (
        np.bincount(owner, weights, bins) for weights in (None, score, right.astype(np.float64))
    )
    whole = np.where(counts > 0, counts, np.nan)
    predicted, observed = total / whole, hits / whole
    gaps = np.nansum(counts * np.abs(observed - predicted))
    error = float(gaps / counts.sum()) if counts.sum() else float("nan")
    return Calibration(edges, counts.astype(int), predicted, observed, error)


def _average(values: dict[str, float | None]) -> float:
    known = [value for value in values.values() if value is not None]
    return float(np.mean(known)) if known else 0.0
