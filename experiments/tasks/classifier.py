"""Parts that classification and tagging share: networks that return a logit for each class."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dyn.diagnostics import sown_weights
from experiments.figures.attention import draw_attention_by_class
from experiments.figures.examples import draw_mistakes, find_mistakes, find_names
from experiments.tasks.per_class import write_per_class
from experiments.tasks.task import Batch, Results, Transform, Variables


def inspect_classifier(model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
    """Returns `labels`, `logits`, and `mixtures`: how each layer mixed its kernels, layer to `[B, K]`."""
    logits, state = model.apply(variables, batch["inputs"], train=False, mutable=["intermediates"])
    return {
        "labels": batch["label"],
        "logits": logits.astype(jnp.float32),
        "mixtures": {
            layer: weights["kernel"]
            for layer, weights in sown_weights(state.get("intermediates", {})).items()
            if "kernel" in weights
        },
    }


def draw_classifier(
    results: Results, probabilities: np.ndarray, transform: Transform, threshold: float = 0.5
) -> dict[str, np.ndarray]:
    """Writes the metrics of each class, and draws the worst mistakes and the attention of each layer.

    Where examples may have several labels, those are predicted whose probability reaches the threshold.

    Returns:
        the mean mixture of each class in each layer that mixes kernels, layer to `[C, K]`.
    """
    dataset, workdir = results.dataset, results.workdir
    labels = results.inspected["labels"]
    classes, source = list(dataset.classes), dataset.splits["test"]
    write_per_class(workdir, classes, labels, probabilities, threshold)
    mistakes = find_mistakes(labels, probabilities)
    indices = [index for index, _ in mistakes]
    draw_mistakes(
        [transform(source[index])["inputs"] for index in indices],
        mistakes,
        labels,
        probabilities,
        find_names(source, indices),
        classes,
        workdir / "figures" / "mistakes.png",
    )
    means = {
        layer: average_by_class(weights, labels, len(classes))
        for layer, weights in results.inspected["mixtures"].items()
    }
    if means:
        draw_attention_by_class(means, classes, workdir / "figures" / "attention.png")
    return means


def average_by_class(weights: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the mean of weights `[N, K]` over each class, `[C, K]`; NaN for a class without examples.

    The labels are int `[N]`, or float `[N, C]`, where an example counts for each of its labels.
    """
    if labels.ndim == 2:
        examples, labels = np.nonzero(labels > 0.5)
        weights = weights[examples]
    sums = np.zeros((num_classes, weights.shape[1]))
    np.add.at(sums, labels, weights)
    counts = np.bincount(labels, minlength=num_classes)[:, None]
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return sums / counts
