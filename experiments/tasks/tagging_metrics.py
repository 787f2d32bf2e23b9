"""How well labels are found of which an example may have several, or none, and some are not known.

Labels are `[N, C]`: 1 for yes, 0 for no, NaN for not known; what is not known counts nowhere.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.figures.pr_curves import Curve, columns, curve
from experiments.tasks.metrics import precision_recall_f1


def masked_loss(labels: np.ndarray, logits: np.ndarray, norm: str = "all") -> float:
    """The binary cross-entropy of what is known, in float64; see `tasks.tagging.masked_cross_entropy`."""
    known = ~np.isnan(labels)
    z, t = np.asarray(logits, np.float64)[known], np.asarray(labels, np.float64)[known]
    losses = np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))
    return float(losses.sum() / max(known.size if norm == "all" else z.size, 1))


def scores(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], threshold: float
) -> dict[str, Any]:
    """The metrics of LeBien et al. (2020), and the best that thresholds can do.

    AP = sum over the thresholds of (R_n - R_(n-1)) P_n, scikit-learn's average precision.

    Args:
        labels: `[N, C]`.
        probabilities: `[N, C]`; NaN counts as 0.
        classes: C names.
        threshold: what is as probable is said to be there.

    Returns:
        `map`, the mean AP of the classes; `total_ap`, that of all entries together. `precision`, `recall` and
        `f1` at the threshold, means over the classes; `total_precision` and `total_recall`, of all entries
        together. `at_best_f1`, all five at the thresholds with the highest F1 (each class its own, or one
        for all), which are chosen on these very examples: upper bounds. `ap`, each class's, None for one of
        which nothing is there: such a class is in no mean. Means of no class are 0.
    """
    labels = np.asarray(labels, np.float64)
    probabilities = np.nan_to_num(np.asarray(probabilities, np.float64))
    parts = list(columns(labels, probabilities))
    found = [curve(*part) for part in parts]
    pooled = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    together = curve(*pooled)
    average = [line.average_precision for line in found if line]
    return {
        "map": float(np.mean(average)) if average else 0.0,
        "total_ap": together.average_precision if together else 0.0,
        **_at([threshold] * len(parts), parts),
        **_together(threshold, pooled),
        "at_best_f1": {
            **_at([_best(line) for line in found], parts),
            **_together(_best(together), pooled),
        },
        "ap": {
            name: line.average_precision if line else None
            for name, line in zip(classes, found, strict=True)
        },
    }


def _best(line: Curve | None) -> float:
    """The threshold with the highest F1."""
    return line.best()[0] if line else np.inf


def _together(threshold: float, pooled: tuple[np.ndarray, ...]) -> dict[str, float]:
    found = _at([threshold], [pooled])
    return {f"total_{name}": found[name] for name in ("precision", "recall")}


def _at(thresholds: Sequence[float], parts: Sequence[tuple[np.ndarray, ...]]) -> dict[str, float]:
    """Mean precision, recall and F1 of classes, each at its threshold."""
    counts = []
    for threshold, (truth, score) in zip(thresholds, parts, strict=True):
        said = score >= threshold
        counts.append([np.sum(x) for x in (truth & said, said, truth)])
    measured = precision_recall_f1(*np.array(counts).T)
    there = ~np.isnan(measured["f1"])
    return {
        name: float(values[there].mean()) if there.any() else 0.0
        for name, values in measured.items()
    }
