"""Metrics of a tagging, whose examples may have several labels or none, and whose labels may be unknown.

Labels are `[N, C]`: 1 for yes, 0 for no, NaN for unknown; unknown labels are counted nowhere.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.figures.pr_curves import PRCurve
from experiments.tasks.metrics import compute_precision_recall_f1
from experiments.tasks.per_class import compute_pr_curve, find_best_threshold, split_by_class
from experiments.tasks.ranking import compute_ranking

Part = tuple[np.ndarray, np.ndarray]  # truth and scores of the examples with a known label


def compute_masked_loss(labels: np.ndarray, logits: np.ndarray, norm: str = "all") -> float:
    """Returns the binary cross-entropy of the known labels, in float64.

    See `tasks.tagging.compute_masked_cross_entropy`.
    """
    known = ~np.isnan(labels)
    z, t = np.asarray(logits, np.float64)[known], np.asarray(labels, np.float64)[known]
    losses = np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))
    return float(losses.sum() / max(known.size if norm == "all" else z.size, 1))


def compute_scores(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Returns the metrics of LeBien et al. (2020), and the best that thresholds can do.

    AP = sum over the thresholds of (R_n - R_(n-1)) P_n, scikit-learn's average precision.

    Labels with a probability that reaches the threshold are predicted; NaN counts as 0.

    Returns:
        `map`, the mean AP of the classes; `total_ap`, that of all entries together. `auroc`, the mean area
        under the ROC curve of the classes with both kinds of examples. `precision`, `recall` and `f1` at the
        threshold, means over the classes; `total_precision` and `total_recall`, of all entries together.
        `at_best_f1`, all five at the thresholds with the highest F1 (one per class, or one for all), which
        are chosen on these very examples: upper bounds. `ap`, of each class, None for one without examples:
        such a class is in no mean. Means of no class are 0.
    """
    labels = np.asarray(labels, np.float64)
    probabilities = np.nan_to_num(np.asarray(probabilities, np.float64))
    parts = list(split_by_class(labels, probabilities))
    curves = [compute_pr_curve(*part) for part in parts]
    pooled = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    pooled_curve = compute_pr_curve(*pooled)
    average = [curve.average_precision for curve in curves if curve]
    return {
        "map": float(np.mean(average)) if average else 0.0,
        "total_ap": pooled_curve.average_precision if pooled_curve else 0.0,
        **_score_at([threshold] * len(parts), parts),
        **_score_pooled(threshold, pooled),
        "at_best_f1": {
            **_score_at([_choose_threshold(curve) for curve in curves], parts),
            **_score_pooled(_choose_threshold(pooled_curve), pooled),
        },
        "auroc": compute_ranking(labels, probabilities, classes)["auroc"],
        "ap": {
            name: curve.average_precision if curve else None
            for name, curve in zip(classes, curves, strict=True)
        },
    }


def _choose_threshold(curve: PRCurve | None) -> float:
    """Returns the threshold with the highest F1; without examples one that nothing reaches."""
    return find_best_threshold(curve)[0] if curve else np.inf


def _score_pooled(threshold: float, pooled: Part) -> dict[str, float]:
    """Returns precision and recall of all entries together."""
    scores = _score_at([threshold], [pooled])
    return {f"total_{name}": scores[name] for name in ("precision", "recall")}


def _score_at(thresholds: Sequence[float], parts: Sequence[Part]) -> dict[str, float]:
    """Returns the mean precision, recall and F1 of the classes, each at its threshold."""
    counts = []
    for threshold, (truth, score) in zip(thresholds, parts, strict=True):
        predicted = score >= threshold
        counts.append([np.sum(x) for x in (truth & predicted, predicted, truth)])
    measured = compute_precision_recall_f1(*np.array(counts).T)
    present = ~np.isnan(measured["f1"])
    return {
        name: float(values[present].mean()) if present.any() else 0.0
        for name, values in measured.items()
    }
