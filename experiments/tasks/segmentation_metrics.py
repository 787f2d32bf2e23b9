"""How good a segmentation is: one confusion matrix over all pixels of a split, and what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.masks import IGNORE
from experiments.tasks import metrics


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a confusion matrix says.

    Attributes:
        miou: mean of `iou` over the classes that are present in truth or prediction.
        iou: float64 `[C]`, TP / (TP + FP + FN) of each class; NaN where that is 0 / 0.
        pixel_accuracy: the share of counted pixels that are right.
        mean_accuracy: mean over the classes present in the truth of the share found of each.
    """

    miou: float
    iou: np.ndarray
    pixel_accuracy: float
    mean_accuracy: float


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """How often the pixels of each class were taken for each class.

    Matrices of several pictures add up to the matrix of them all.

    Args:
        labels: integers of any shape, the truth; 255 is not counted.
        predictions: integers of the same shape; those of pixels that do not count may be anything.
        num_classes: C; other labels and predictions are 0 to C-1.

    Returns:
        `[C, C]` int64: rows are the truth, columns the predictions.

    Raises:
        ValueError: if the shapes differ, or a class is out of range.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"labels are {labels.shape}, but predictions {predictions.shape}")
    counted = labels != IGNORE
    return metrics.confusion_matrix(labels[counted], predictions[counted], num_classes)


def confusion_counts(
    labels: jax.Array, predictions: jax.Array, mask: jax.Array, num_classes: int
) -> jax.Array:
    """The confusion matrix of a batch, for use within `jax.jit`.

    Counts are exact: add them up in int64 on the host, as the pixels of a whole split may be more
    than an int32 or the digits of a float32 can hold.

    Args:
        labels: `[B, H, W]` integers, the truth; 255 is not counted.
        predictions: `[B, H, W]` integers.
        mask: `[B]`, true (or 1) where an example counts and false (or 0) where it is padding.
        num_classes: C; a static number. Counted labels and predictions out of 0 to C-1 are left
            out, as nothing can be raised here.

    Returns:
        `[C, C]` int32: rows are the truth, columns the predictions.
    """
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    known = (labels >= 0) & (labels < num_classes) & (labels != IGNORE)
    known &= (predictions >= 0) & (predictions < num_classes)
    known &= mask.astype(bool)[:, None, None]
    # One cell more than the matrix has, for all that is not counted.
    cells = jnp.where(known, labels * num_classes + predictions, num_classes**2)
    # Each example by itself, so that a batch that lies on several devices stays where it is.
    counts = jax.vmap(lambda flat: jnp.bincount(flat, length=num_classes**2 + 1))(
        cells.reshape(len(cells), -1)
    )
    return counts.sum(axis=0, dtype=jnp.int32)[:-1].reshape(num_classes, num_classes)


def scores(matrix: np.ndarray) -> Scores:
    """What the confusion matrix of a whole split says.

    A class is present if TP + FP + FN > 0: it occurs in the truth or in the predictions. Classes
    that are not present have no part in the mean, as they could be neither found nor missed; a
    class that is predicted but does not occur has IoU 0 and counts.

    Args:
        matrix: `[C, C]` counts, rows the truth and columns the predictions.

    Returns:
        The scores; NaN where there was nothing to count.
    """
    matrix = np.asarray(matrix, np.float64)
    right = np.diag(matrix)
    true, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    iou = _share(right, true + predicted - right)
    return Scores(
        miou=_mean(iou),
        iou=iou,
        pixel_accuracy=float(_share(right.sum(), matrix.sum())),
        mean_accuracy=_mean(_share(right, true)),
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole)  # 0 / 0 is NaN; the part is never more than the whole.


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
