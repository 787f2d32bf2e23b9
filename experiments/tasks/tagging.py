"""Tagging: examples with several labels or none, some of which are unknown.

LeBien, Zhong, Campos-Cerqueira, Velev, Dodhia, Lavista Ferres, Aide: A pipeline for identification of bird
and frog species in tropical soundscape recordings using a convolutional neural network. Ecological
Informatics 59, 2020. The network ends in logits instead of probabilities: the numbers are the same, and none
overflows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit

from experiments.data import Dataset
from experiments.tasks.backbone import (
    NETWORK_SECTIONS,
    apply_in_training,
    describe_network,
    make_network,
)
from experiments.tasks.classification import Classification
from experiments.tasks.classifier import draw_classifier, inspect_classifier
from experiments.tasks.information import read_information
from experiments.tasks.mixing import make_targets, mix_examples
from experiments.tasks.sound_evaluation import write_sound_evaluation
from experiments.tasks.tagging_metrics import compute_masked_loss, compute_scores
from experiments.tasks.task import Array, Batch, Loss, Results, Task, Variables


class Tagging(Task):
    """Assigns any number of labels to each example: masked cross-entropy, mean average precision."""

    metric = "map"
    augmentations = Classification.augmentations
    sections = (*NETWORK_SECTIONS, "tagging", "mixing", "mixture")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns a network with a logit for each class."""
        return make_network(self.config, num_classes, spatial_axes)

    def describe_model(self, num_classes: int, spatial_axes: int) -> dict[str, Any]:
        """Returns the arguments of `dyn.models.create_model` for the network."""
        return describe_network(self.config, num_classes, spatial_axes)

    def compute_loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: Array, head_only: bool
    ) -> Loss:
        """Returns the masked cross-entropy of a batch; a mixed entry is known if both of its parts are."""
        drop, draw = jax.random.split(rng)
        targets = make_targets(batch["label"], model.num_classes)
        smoothing = self.config.mixing.label_smoothing
        targets = targets * (1 - smoothing) + smoothing / 2
        inputs, targets = mix_examples(self.config.mixing, batch["inputs"], targets, draw)
        logits, changed = apply_in_training(
            model, variables, inputs, drop, head_only, read_information(self.config)
        )
        focal = self.config.audio.get("focal", 0.0) if self.is_audio else 0.0
        value = compute_masked_cross_entropy(logits, targets, self.config.tagging.norm, focal)
        return value, ({"loss": value}, changed)

    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns all logits and labels of a batch: average precision is no sum over examples."""
        return {
            "logits": model.apply(variables, batch["inputs"], train=False).astype(jnp.float32),
            "labels": make_targets(batch["label"], model.num_classes),
            "mask": batch["mask"],
        }

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, Any]:
        """Returns the loss and `tagging_metrics.compute_scores`."""
        batches = list(sums)
        real = np.concatenate([batch["mask"] for batch in batches]) > 0
        logits, labels = (
            np.concatenate([batch[name] for batch in batches])[real]
            for name in ("logits", "labels")
        )
        loss = compute_masked_loss(labels, logits, self.config.tagging.norm)
        probabilities, threshold = expit(logits.astype(np.float64)), self.config.tagging.threshold
        scores = compute_scores(labels, probabilities, dataset.classes, threshold)
        return {"loss": loss, **scores}

    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns labels, logits and mixtures; see `inspect_classifier`."""
        inspected = inspect_classifier(model, variables, batch)
        return {**inspected, "labels": make_targets(batch["label"], model.num_classes)}

    def predict(self, model: nn.Module, variables: Variables, inputs: Array) -> Array:
        """Returns the probability of each label by itself, `[B, C]`."""
        return jax.nn.sigmoid(model.apply(variables, inputs, train=False).astype(jnp.float32))

    def draw_figures(self, results: Results) -> None:
        """Draws mistakes, curves and attention, and writes the metrics of each class."""
        probabilities, transform = expit(results.inspected["logits"]), self.make_transform(False)
        draw_classifier(results, probabilities, transform, self.config.tagging.threshold)
        if results.validation:
            scores = expit(results.validation["logits"])
            write_sound_evaluation(results, probabilities, scores, self.config.audio.precision)

    @property
    def needs_validation(self) -> bool:
        """True for recordings, for whose classes thresholds are chosen."""
        return self.is_audio


def compute_masked_cross_entropy(
    logits: Array, targets: Array, norm: str = "all", focal: float = 0.0
) -> Array:
    """Returns the binary cross-entropy of the known targets, from logits.

        mean over all entries of m |t - sigmoid(z)|^focal (max(z, 0) - z t + log(1 + exp(-|z|))),
        m = 1 if t is known, else 0

    With an exponent above 0 it is the focal loss, to which entries that are right already add little.

    Args:
        logits: z, `[B, C]`.
        targets: t, `[B, C]`, from 0 to 1, NaN where unknown: such an entry adds nothing and has no gradient.
        norm: 'all' for the mean over all entries, so that an example has more weight the more of its labels
            are known; 'known' for the mean over the known ones.
        focal: the exponent. For targets of 0 and 1 the factor is (1 - p)^focal, p the probability of the
            target.

    Source of the focal loss: Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV
    2017.

    Example:
        >>> import jax.numpy as jnp
        >>> from experiments.tasks.tagging import compute_masked_cross_entropy as loss
        >>> logits, targets = jnp.zeros((1, 4)), jnp.array([[1.0, 0.0, jnp.nan, jnp.nan]])
        >>> [round(float(loss(logits, targets, norm)), 4) for norm in ("all", "known")]
        [0.3466, 0.6931]
    """
    known = ~jnp.isnan(targets)
    zeros = jnp.zeros_like(logits)
    known_targets = jnp.where(known, targets, zeros)
    losses = optax.losses.sigmoid_binary_cross_entropy(logits, known_targets)
    if focal:
        losses *= _raise_distance(known_targets - jax.nn.sigmoid(logits), focal)
    total = jnp.sum(jnp.where(known, losses, zeros))
    if norm == "all":
        return total / logits.size
    # All labels of a batch may be unknown.
    return total / jnp.maximum(jnp.sum(known, dtype=jnp.float32), 1.0)


def _raise_distance(difference: Array, exponent: float) -> Array:
    # The smallest distances are cut off: roots have no finite gradient at 0.
    return jnp.maximum(jnp.abs(difference), jnp.finfo(difference.dtype).eps) ** exponent
