"""Classification: one class per example."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

from dyn import models
from experiments.core import files
from experiments.core.errors import UserError
from experiments.data import Dataset, transforms
from experiments.figures.confusion import draw_confusion
from experiments.figures.examples import choose_examples, draw_predictions
from experiments.runs.artifacts import save_maps
from experiments.tasks.backbone import (
    CONVS,
    NETWORK_SECTIONS,
    NETWORKS,
    apply_in_training,
    describe_layer,
    describe_network,
    make_layer,
    make_network,
)
from experiments.tasks.classifier import draw_classifier, inspect_classifier
from experiments.tasks.information import read_information
from experiments.tasks.metrics import add_sums, compute_means, sum_classification
from experiments.tasks.mixing import make_targets, mix_examples, smooth_targets
from experiments.tasks.ranking import compute_ranking
from experiments.tasks.sound_evaluation import write_sound_evaluation
from experiments.tasks.task import Array, Batch, Loss, Results, Task, Variables

SERIES_NETWORKS = {"net1": models.Net1, "net2": models.Net2}


class Classification(Task):
    """Assigns one class to each example: cross-entropy; evaluations are ranked by accuracy."""

    metric = "accuracy"
    augmentations = (*transforms.AUGMENTATIONS, "spectrogram")
    sections = (*NETWORK_SECTIONS, "series", "mixing", "mixture")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns a network for pictures or series with a logit for each class."""
        network = self.config.model.network
        if network in NETWORKS:
            return make_network(self.config, num_classes, spatial_axes)
        if network not in SERIES_NETWORKS:
            choices = (*NETWORKS, *SERIES_NETWORKS)
            raise UserError(
                f"--config.model.network={network}: choose one of {', '.join(choices)}."
            )
        described = self.describe_model(num_classes, spatial_axes)
        del described["name"]
        conv, dtype = make_layer(self.config, "conv", CONVS), jnp.dtype(self.config.dtype)
        return SERIES_NETWORKS[network](**described | {"conv": conv, "dtype": dtype})

    def describe_model(self, num_classes: int, spatial_axes: int) -> dict[str, Any]:
        """Returns the arguments of `dyn.models.create_model` for the network."""
        network = self.config.model.network
        if network in NETWORKS:
            return describe_network(self.config, num_classes, spatial_axes)
        return {
            "name": network,
            "num_classes": num_classes,
            "conv": describe_layer(self.config, "conv", CONVS),
            "dropout": self.config.model.dropout,
            "dtype": self.config.dtype,
            **self.config.series,
        }

    def compute_loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: Array, head_only: bool
    ) -> Loss:
        """Returns the mean cross-entropy of a batch, which may be mixed (see `mixing`).

        The training accuracy compares predictions for mixed inputs with the unmixed labels.
        """
        dropout_rng, mixing_rng = jax.random.split(rng)
        mixing = self.config.mixing
        labels = make_targets(batch["label"], model.num_classes)
        targets = smooth_targets(labels, mixing.label_smoothing)
        inputs, targets = mix_examples(mixing, batch["inputs"], targets, mixing_rng)
        logits, changed = apply_in_training(
            model, variables, inputs, dropout_rng, head_only, read_information(self.config)
        )
        focal = self.config.audio.get("focal", 0.0) if self.is_audio else 0.0
        loss = compute_cross_entropy(logits, targets, focal)
        return loss, ({"loss": loss, "accuracy": compute_accuracy(logits, labels)}, changed)

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, float]:
        """Returns loss, accuracies, and precision, recall and F1; see `metrics.compute_means`.

        For recordings also the means of average precision and area under the ROC curve; see `ranking`.
        """
        if not self.is_audio:
            return compute_means(add_sums(sums))
        batches = list(sums)
        each = ("logits", "labels", "mask")
        summed = [{k: v for k, v in batch.items() if k not in each} for batch in batches]
        logits, labels, mask = (np.concatenate([b[name] for b in batches]) for name in each)
        probabilities = softmax(logits[mask > 0].astype(np.float64), axis=-1)
        ranking = compute_ranking(labels[mask > 0], probabilities, dataset.classes)
        return {**compute_means(add_sums(summed)), "map": ranking["map"], "auroc": ranking["auroc"]}

    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns the summed loss of a batch and its per-class counts; for recordings its logits, too."""
        logits = model.apply(variables, batch["inputs"], train=False).astype(jnp.float32)
        sums = sum_classification(logits, batch["label"], batch["mask"])
        if self.is_audio:
            sums |= {"logits": logits, "labels": batch["label"], "mask": batch["mask"]}
        return sums

    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns labels, logits and mixtures; see `inspect_classifier`."""
        return inspect_classifier(model, variables, batch)

    def predict(self, model: nn.Module, variables: Variables, inputs: Array) -> Array:
        """Returns the probability of each class, `[B, C]`."""
        return jax.nn.softmax(model.apply(variables, inputs, train=False).astype(jnp.float32))

    def draw_figures(self, results: Results) -> None:
        """Draws the confusion matrix, predictions, mistakes, curves and attention, and writes the tables.

        `maps.npz` stores data for multi-run reports.
        """
        dataset, workdir, inspected = results.dataset, results.workdir, results.inspected
        labels, logits, mixtures = (inspected[name] for name in ("labels", "logits", "mixtures"))
        classes = list(dataset.classes)
        predictions, probabilities = logits.argmax(axis=-1), softmax(logits, axis=-1)
        write_confusion(results)

        transform, source = self.make_transform(train=False), dataset.splits["test"]
        shown = choose_examples(labels, predictions, 32, np.random.default_rng(results.seed))
        draw_predictions(
            np.stack([transform(source[int(index)])["inputs"] for index in shown]),
            labels[shown],
            predictions[shown],
            probabilities[shown, predictions[shown]],
            classes,
            workdir / "figures" / "predictions.png",
        )
        means = draw_classifier(results, probabilities, transform)
        if results.validation:
            scores = softmax(results.validation["logits"], axis=-1)
            write_sound_evaluation(results, probabilities, scores, self.config.audio.precision)
        save_maps(
            workdir / "maps.npz",
            results.model,
            results.variables,
            lambda index: transform(source[index]),
            labels,
            classes,
            mixtures,
            means,
        )

    @property
    def needs_validation(self) -> bool:
        """True for recordings, for whose classes thresholds are chosen."""
        return self.is_audio


def write_confusion(results: Results) -> None:
    """Writes `confusion.csv`, the number of test examples of each class and prediction, and draws it."""
    classes, workdir = list(results.dataset.classes), results.workdir
    predictions = results.inspected["logits"].argmax(axis=-1)
    labels = results.inspected["labels"]
    matrix = confusion_matrix(labels, predictions, labels=range(len(classes)))
    draw_confusion(matrix, classes, workdir / "figures" / "confusion.png")
    rows = ([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    files.write_csv(workdir / "confusion.csv", ["truth", *classes], rows)


def compute_accuracy(logits: Array, targets: Array) -> Array:
    """Returns the share of right predictions, without even targets; arrays are `[B, C]`."""
    most = targets.max(axis=-1)
    chosen = jnp.take_along_axis(targets, jnp.argmax(logits, axis=-1)[:, None], axis=-1)[:, 0]
    counts = most > targets.min(axis=-1)
    return jnp.sum((chosen == most) & counts) / jnp.maximum(jnp.sum(counts), 1)


def compute_cross_entropy(logits: Array, targets: Array, focal: float = 0.0) -> Array:
    """Returns the mean over a batch of -sum_c t_c (1 - p_c)^focal log p_c with p = softmax(logits).

    Args:
        logits, targets: `[B, C]`.
        focal: 0 for the cross-entropy; above 0 it is the focal loss of Lin et al. (ICCV 2017), to which
            examples that are right already add little.

    Example:
        >>> logits, targets = jnp.zeros((1, 4)), jnp.array([[1.0, 0.0, 0.0, 0.0]])
        >>> [round(float(compute_cross_entropy(logits, targets, focal)), 4) for focal in (0.0, 2.0)]
        [1.3863, 0.7798]
    """
    if not focal:
        return optax.losses.softmax_cross_entropy(logits, targets).mean()
    logs = jax.nn.log_softmax(logits)
    rest = jnp.maximum(1 - jnp.exp(logs), jnp.finfo(logits.dtype).eps)
    return -jnp.sum(targets * rest**focal * logs, axis=-1).mean()
