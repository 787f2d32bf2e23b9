"""Tagging: labels of which an example may have several, or none, and of which some are not known.

LeBien, Zhong, Campos-Cerqueira, Velev, Dodhia, Lavista Ferres, Aide: A pipeline for identification of bird
and frog species in tropical soundscape recordings using a convolutional neural network. Ecological
Informatics 59, 2020. The network ends in logits instead of probabilities: the numbers are the same, and none
overflows.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from scipy.special import expit

from experiments.core.errors import UserError
from experiments.data import Dataset
from experiments.figures import classification as figures
from experiments.figures import examples as mistakes
from experiments.figures import pr_curves as per_class
from experiments.tasks import classification
from experiments.tasks.backbone import make_network
from experiments.tasks.mixing import mix_targets
from experiments.tasks.tagging_metrics import masked_loss, scores

Array = jax.Array
Batch = Mapping[str, Array]

METRIC = "map"
AUGMENTATIONS = classification.AUGMENTATIONS
# What the loss is divided by: all entries, as the paper has it, or those that are known.
NORMS = ("all", "known")

make_transform = classification.make_transform
finish = classification.finish


def make_model(config: ConfigDict, num_classes: int, spatial_axes: int) -> nn.Module:
    """A network with a logit for each class.

    Raises:
        UserError: for a layer, a field of it, or a word of the config that does not exist.
    """
    if config.tagging.norm not in NORMS:
        raise UserError(f"--config.tagging.norm={config.tagging.norm}: choose all or known.")
    return make_network(config, num_classes, spatial_axes)


def targets_of(labels: Array, num_classes: int) -> Array:
    """Labels `[B, C]` as they are; of examples with one class each, `[B]`, that it is this one."""
    return labels if labels.ndim > 1 else jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def masked_cross_entropy(logits: Array, targets: Array, norm: str = "all") -> Array:
    """Binary cross-entropy of what is known, from logits.

        mean over all entries of m (max(z, 0) - z t + log(1 + exp(-|z|))),    m = 1 where t is known, or 0

    Args:
        logits: z, `[B, C]`.
        targets: t, `[B, C]`, from 0 to 1, NaN where not known: such an entry adds nothing, and has no
            gradient.
        norm: 'all': the mean is over all entries, so an example weighs as much as is known of it; 'known':
            over the known ones.

    Example:
        >>> import jax.numpy as jnp
        >>> from experiments.tasks.tagging import masked_cross_entropy
        >>> logits, targets = jnp.zeros((1, 4)), jnp.array([[1.0, 0.0, jnp.nan, jnp.nan]])
        >>> [round(float(masked_cross_entropy(logits, targets, norm)), 4) for norm in ("all", "known")]
        [0.3466, 0.6931]
    """
    known = ~jnp.isnan(targets)
    zeros = jnp.zeros_like(logits)
    losses = optax.losses.sigmoid_binary_cross_entropy(logits, jnp.where(known, targets, zeros))
    total = jnp.sum(jnp.where(known, losses, zeros))
    if norm == "all":
        return total / logits.size
    # Of a batch nothing may be known.
    return total / jnp.maximum(jnp.sum(known, dtype=jnp.float32), 1.0)


def loss(
    config: ConfigDict,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    rng: Array,
    **stage: bool,
) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Masked cross-entropy of a training batch: (loss, (metrics, the collections that changed)).

    Of two mixed examples is known what is known of both. With `head_only=True` all below the head runs as in
    inference.
    """
    drop, draw = jax.random.split(rng)
    targets = targets_of(batch["label"], model.num_classes)
    smoothing = config.mixing.label_smoothing
    targets = targets * (1 - smoothing) + smoothing / 2
    inputs, targets = mix_targets(config, batch["inputs"], targets, draw)
    logits, changed = classification.in_training(model, variables, inputs, drop, **stage)
    value = masked_cross_entropy(logits, targets, config.tagging.norm)
    return value, ({"loss": value}, changed)


def evaluation_sums(
    model: nn.Module, variables: Mapping[str, Any], batch: Batch
) -> dict[str, Array]:
    """Logits and labels of a batch: average precision is no sum over examples."""
    return {
        "logits": model.apply(variables, batch["inputs"], train=False).astype(jnp.float32),
        "labels": targets_of(batch["label"], model.num_classes),
        "mask": batch["mask"],
    }


def measure(
    config: ConfigDict, outputs: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
) -> dict[str, Any]:
    """Loss and `tagging_metrics.scores` of a split, from what `evaluation_sums` gave for its batches."""
    parts = [
        (out["logits"][real], out["labels"][real]) for out in outputs for real in [out["mask"] > 0]
    ]
    logits, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {
        "loss": masked_loss(labels, logits, config.tagging.norm),
        **scores(
            labels, expit(logits.astype(np.float64)), dataset.classes, config.tagging.threshold
        ),
    }


def inspection(model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """Labels and logits of a batch, and how each layer mixed its kernels for it: layer to `[B, K]`."""
    found = classification.inspection(model, variables, batch)
    return {**found, "labels": targets_of(batch["label"], model.num_classes)}


def answer(model: nn.Module, variables: Mapping[str, Any], inputs: Array) -> Array:
    """How probable each label is by itself, `[B, C]`."""
    return jax.nn.sigmoid(model.apply(variables, inputs, train=False).astype(jnp.float32))


def pictures(
    config: ConfigDict,
    model: nn.Module,
    variables: Mapping[str, Any],
    found: Mapping[str, Any],
    test: Mapping[str, Any],
    dataset: Dataset,
    workdir: Path,
) -> None:
    """Draws what a trained network did with the test split, and writes it down for each class.

    Args:
        config: the experiment.
        model: the network.
        variables: of its best evaluation.
        found: `labels [N, C]`, `logits [N, C]` and `mixtures`, layer to `[N, K]`.
        test: the metrics.
        dataset: what was tested on.
        workdir: the run's; figures go into `figures/`.
    """
    labels, probabilities = found["labels"], expit(found["logits"])
    classes, source = list(dataset.classes), dataset.splits["test"]
    per_class.write(workdir, classes, labels, probabilities, config.tagging.threshold)
    worst = mistakes.worst(labels, probabilities)
    examples, prepare = [index for index, _ in worst], make_transform(config, train=False)
    mistakes.draw(
        [prepare(source[index])["inputs"] for index in examples],
        worst,
        labels,
        probabilities,
        mistakes.names_of(source, examples),
        classes,
        workdir / "figures" / "mistakes.png",
    )
    if found["mixtures"]:
        # An example counts for each of its labels.
        examples, numbers = np.nonzero(labels > 0.5)
        by_class = {
            layer: classification.mean_by_class(weights[examples], numbers, len(classes))
            for layer, weights in found["mixtures"].items()
        }
        figures.attention_by_class(by_class, classes, workdir / "figures" / "attention.png")
