"""What a run measured: rows in `metrics.jsonl`, and sums that are taken on the device."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax


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
