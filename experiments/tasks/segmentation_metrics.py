"""Metrics of a segmentation, from one confusion matrix over all pixels of a split."""

from typing import Any

import numpy as np

from experiments.data.masks import IGNORE


def count_pixels(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the confusion matrix of the pixels of a picture.

    Args:
        labels: integers of any shape, the truth; 255 is not counted.
        predictions: integers of the same shape; those of pixels that are not counted may be anything.
        num_classes: C. The matrix is `[C, C]`: rows are the truth, columns the predictions.

    Raises:
        ValueError: if a class is out of range.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    counted = labels != IGNORE
    # Not scikit-learn's: on a million pixels it takes twenty times as long.
    cells = labels[counted].astype(np.int64) * num_classes + predictions[counted]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def compute_scores(matrix: np.ndarray) -> dict[str, Any]:
    """Returns the metrics that follow from the confusion matrix of a whole split.

    A class is present if TP + FP + FN > 0: it occurs in the truth or in the predictions. Classes that are not
    present have no part in the mean, as they could be neither found nor missed; a class that is predicted but
    does not occur has IoU 0 and counts. Metrics are NaN if there was nothing to count.

    Args:
        matrix: `[C, C]` counts, rows the truth and columns the predictions.

    Returns:
        `iou`, float64 `[C]`, TP / (TP + FP + FN) of each class, NaN where that is 0 / 0; `miou`, its mean
        over the classes that are present; `accuracy`, the share of the counted pixels that are right; and
        `mean_accuracy`, the mean recall over the classes that are present in the truth.
    """
    matrix = np.asarray(matrix, np.float64)
    hits = np.diag(matrix)
    actual, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        iou = hits / (actual + predicted - hits)
        recall = hits / actual
        accuracy = float(np.divide(hits.sum(), matrix.sum()))
    return {
        "miou": _average_present(iou),
        "accuracy": accuracy,
        "mean_accuracy": _average_present(recall),
        "iou": iou,
    }


def _average_present(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
