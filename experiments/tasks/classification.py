"""Classification: a residual network, cross-entropy, accuracy, and the pictures of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import metrics, report
from experiments.data import Dataset
from experiments.tasks.backbone import make_resnet

Array = jax.Array
Batch = Mapping[str, Array]


def make_model(config: ConfigDict, dataset: Dataset) -> nn.Module:
    """A ResNet for pictures or series with as many logits as there are classes."""
    return make_resnet(config, len(dataset.classes), spatial_axes=len(dataset.shape) - 1)


def loss(
    model: nn.Module, variables: Mapping[str, Any], batch: Batch, rng: Array
) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Mean cross-entropy of a training batch: (loss, (metrics, the collections that changed)).

    Among the collections is `losses`, what the layers have sown.
    """
    logits, changed = model.apply(
        variables,
        batch["inputs"],
        train=True,
        mutable=["batch_stats", "losses"],
        rngs={"dropout": rng},
    )
    logits = logits.astype(jnp.float32)
    value = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32))
    return value, ({"loss": value, "accuracy": accuracy}, dict(changed))


def evaluation_sums(
    model: nn.Module, variables: Mapping[str, Any], batch: Batch
) -> dict[str, Array]:
    """What a batch adds to loss, accuracy and top-5 accuracy; masked examples add nothing."""
    logits = model.apply(variables, batch["inputs"], train=False).astype(jnp.float32)
    return metrics.classification_sums(logits, batch["label"], batch["mask"])


def inspection(model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """Logits of a batch, and how each layer mixed its candidate kernels for it: layer to `[B, K]`."""
    logits, state = model.apply(variables, batch["inputs"], train=False, mutable=["intermediates"])
    return {
        "logits": logits.astype(jnp.float32),
        "mixtures": kernel_mixtures(state.get("intermediates", {})),
    }


def kernel_mixtures(intermediates: Mapping[str, Any]) -> dict[str, Array]:
    """The sown attention over candidate kernels of each layer, by the layer's path."""
    sown = flax.traverse_util.flatten_dict(dict(intermediates), sep="/")
    mixtures = {}
    for path, values in sown.items():
        if path.endswith("attention/weights") and "kernel" in values[0]:
            mixtures[path.removesuffix("/attention/weights")] = values[0]["kernel"]
    return mixtures


def pictures(
    found: Mapping[str, Any], examples: Any, classes: list[str], folder: Path, seed: int
) -> list[str]:
    """Draws what a trained network did with the test set.

    Args:
        found: `labels [N]`, `logits [N, C]` and `mixtures`, layer to `[N, K]`.
        examples: gives the example of an index, for the grid.
        classes: their names.
        folder: where the files go.
        seed: decides which examples are shown.

    Returns:
        The names of the files.
    """
    labels, logits = found["labels"], found["logits"]
    predictions = logits.argmax(axis=-1)
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)

    matrix = metrics.confusion_matrix(labels, predictions, len(classes))
    report.confusion(matrix, classes, folder / "confusion.png")
    shown = report.choose_examples(labels, predictions, 32, np.random.default_rng(seed))
    report.prediction_grid(
        np.stack([examples[int(i)]["inputs"] for i in shown]),
        labels[shown],
        predictions[shown],
        probabilities[shown],
        classes,
        folder / "predictions.png",
    )
    drawn = ["confusion.png", "predictions.png"]
    if found["mixtures"]:
        by_class = {
            layer: _mean_by_class(weights, labels, len(classes))
            for layer, weights in found["mixtures"].items()
        }
        report.attention_by_class(by_class, classes, folder / "attention.png")
        drawn.append("attention.png")
    return drawn


def _mean_by_class(weights: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean mixture of each class, `[C, K]`; a class without examples is NaN."""
    with np.errstate(invalid="ignore"):
        counts = np.bincount(labels, minlength=num_classes)[:, None]
        sums = np.zeros((num_classes, weights.shape[1]))
        np.add.at(sums, labels, weights)
        return sums / counts
