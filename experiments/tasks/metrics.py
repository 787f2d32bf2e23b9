"""Metrics of a classification: sums that are taken on the device, and what follows from them."""

from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax


def sum_classification(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Returns what one batch adds to the loss, the accuracies and the per-class counts.

    Args:
        logits: `[B, C]` floats.
        labels: `[B]` integers, 0 to C-1.
        mask: `[B]`, 1 (or true) for examples and 0 (or false) for padding, whose logits and label may be
            anything.

    Returns:
        float32 scalars: `loss` (sum of cross-entropies), `correct`, `correct5` (the true class is among the
        best min(5, C); of equal logits the lower index is better, as in argmax) and `count`; float32 `[C]`:
        `hits` (examples of a class that were taken for it), `predicted` (all that were taken for it) and
        `actual` (all examples of it). An example with a NaN among its logits counts as wrong, and as taken
        for no class.
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

    def count_classes(classes: jax.Array, selected: jax.Array) -> jax.Array:
        members = jax.nn.one_hot(classes, logits.shape[-1], dtype=jnp.float32)
        return jnp.sum(jnp.where(selected[:, None], members, jnp.zeros_like(members)), axis=0)

    return {
        "loss": jnp.sum(jnp.where(counts, losses, jnp.zeros_like(losses))),
        "correct": jnp.sum(valid & (rank < 1), dtype=jnp.float32),
        "correct5": jnp.sum(valid & (rank < 5), dtype=jnp.float32),
        "count": jnp.sum(counts, dtype=jnp.float32),
        "hits": count_classes(labels, valid & (rank < 1)),
        "predicted": count_classes(jnp.argmax(logits, axis=-1), valid),
        "actual": count_classes(labels, counts),
    }


def add_sums(sums: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the sums of all batches added up, float64."""
    total: dict[str, np.ndarray] = {}
    for batch in sums:
        for name, value in batch.items():
            total[name] = total.get(name, 0.0) + np.asarray(value, np.float64)
    return total


def compute_means(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the metrics that follow from results of `sum_classification`, added up.

    Returns:
        `loss`, `accuracy`, `top5`, the means over the classes that have examples of `precision`, `recall` and
        `f1`, and the complements `top1_error` and `top5_error` of the accuracies.
    """
    accuracy, top5 = (float(sums[name] / sums["count"]) for name in ("correct", "correct5"))
    by_class = compute_precision_recall_f1(sums["hits"], sums["predicted"], sums["actual"])
    return {
        "loss": float(sums["loss"] / sums["count"]),
        "accuracy": accuracy,
        "top5": top5,
        **{name: float(np.nanmean(values)) for name, values in by_class.items()},
        "top1_error": 1 - accuracy,
        "top5_error": 1 - top5,
    }


def compute_precision_recall_f1(
    hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns how well each class is recognised, from the counts of `sum_classification`.

    Returns:
        `precision` = hits / predicted, `recall` = hits / actual and `f1` = 2 hits / (predicted + actual),
        their harmonic mean, float64 `[C]`. A class that is never predicted has a precision of 0; one without
        examples is NaN in all three.
    """
    hits, predicted, actual = (np.asarray(x, np.float64) for x in (hits, predicted, actual))
    wholes = {"precision": predicted, "recall": actual, "f1": (predicted + actual) / 2}
    return {
        name: np.where(actual > 0, hits / np.where(whole > 0, whole, 1), np.nan)
        for name, whole in wholes.items()
    }


def name_values(classes: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    """Returns the value of each class by its name; None for NaN."""
    pairs = zip(classes, np.asarray(values, np.float64), strict=True)
    return {name: None if np.isnan(value) else float(value) for name, value in pairs}
