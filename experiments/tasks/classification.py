"""Classification: a network, cross-entropy, accuracy, and the pictures of a run."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dyn import models
from dyn.diagnostics import sown_weights
from experiments.core import files
from experiments.core.errors import UserError
from experiments.data import Dataset, Example, spectrogram_transforms, transforms
from experiments.figures import classification as figures
from experiments.figures import examples as mistakes
from experiments.figures import pr_curves as per_class
from experiments.runs import artifacts as maps
from experiments.tasks import metrics
from experiments.tasks.backbone import CONVS, NETWORKS, make_layer, make_network
from experiments.tasks.mixing import mix

Array = jax.Array
Batch = Mapping[str, Array]

METRIC = "accuracy"
AUGMENTATIONS = (*transforms.AUGMENTATIONS, "spectrogram")
SERIES_NETS = {"net1": models.Net1, "net2": models.Net2}


def make_model(config: ConfigDict, num_classes: int, spatial_axes: int) -> nn.Module:
    """A network for pictures or series with as many logits as there are classes.

    Raises:
        UserError: for a layer, a field of it, or a word of `config.model` that does not exist.
    """
    network = config.model.network
    if network in NETWORKS:
        return make_network(config, num_classes, spatial_axes)
    if network not in SERIES_NETS:
        choices = (*NETWORKS, *SERIES_NETS)
        raise UserError(f"--config.model.network={network}: choose one of {', '.join(choices)}.")
    return SERIES_NETS[network](
        num_classes=num_classes,
        conv=make_layer(config, "conv", CONVS),
        dropout=config.model.dropout,
        dtype=jnp.dtype(config.dtype),
        **config.series,
    )


def make_transform(config: ConfigDict, train: bool) -> Callable[..., Example]:
    """What is done to an example before the network sees it."""
    if config.data.name == "audio":
        return spectrogram_transforms.make(config, train)
    return transforms.make(config.augment, config.image_size, **config.normalise, train=train)


def loss(
    config: ConfigDict,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    rng: Array,
    **stage: bool,
) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Mean cross-entropy of a training batch: (loss, (metrics, the collections that changed)).

    Among the collections is `losses`, what the layers have sown. With `head_only=True` all below the head
    runs as in inference.
    """
    drop, draw = jax.random.split(rng)
    inputs, targets = mix(config, batch["inputs"], batch["label"], model.num_classes, draw)
    logits, changed = in_training(model, variables, inputs, drop, **stage)
    value = optax.losses.softmax_cross_entropy(logits, targets).mean()
    accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32))
    return value, ({"loss": value, "accuracy": accuracy}, changed)


def in_training(
    model: nn.Module, variables: Mapping[str, Any], inputs: Array, rng: Array, **stage: bool
) -> tuple[Array, dict[str, Any]]:
    """Logits of a batch, float32, and the collections that changed."""
    logits, changed = model.apply(
        variables,
        inputs,
        train=True,
        **stage,
        # Layers with norms of their own leave the running averages alone where these cannot change.
        mutable=["losses"] if stage else ["batch_stats", "losses"],
        rngs={"dropout": rng},
    )
    return logits.astype(jnp.float32), dict(changed)


def measure(
    config: ConfigDict, outputs: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
) -> dict[str, float]:
    """Loss and shares of a split, from what `evaluation_sums` gave for its batches: `metrics.means`."""
    total: dict[str, np.ndarray] = {}
    for sums in outputs:
        total = {
            name: total.get(name, 0.0) + np.asarray(value, np.float64)
            for name, value in sums.items()
        }
    return metrics.means(total)


def evaluation_sums(
    model: nn.Module, variables: Mapping[str, Any], batch: Batch
) -> dict[str, Array]:
    """What a batch adds to the loss and the counts; masked examples add nothing."""
    logits = model.apply(variables, batch["inputs"], train=False).astype(jnp.float32)
    return metrics.classification_sums(logits, batch["label"], batch["mask"])


def inspection(model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """Labels and logits of a batch, and how each layer mixed its kernels for it: layer to `[B, K]`."""
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


def answer(model: nn.Module, variables: Mapping[str, Any], inputs: Array) -> Array:
    """The probability of each class, `[B, C]`."""
    return jax.nn.softmax(model.apply(variables, inputs, train=False).astype(jnp.float32))


def finish(answer: np.ndarray, example: Example) -> np.ndarray:
    """What is said of one example in the end: the probability of each class, `[C]`."""
    del example
    return answer


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

    What a report shows of several runs together is kept in `maps.npz`.

    Args:
        config: the experiment; its seed decides which examples are shown.
        model: the network.
        variables: of its best evaluation.
        found: `labels [N]`, `logits [N, C]` and `mixtures`, layer to `[N, K]`.
        test: the metrics.
        dataset: what was tested on.
        workdir: the run's; figures go into `figures/`.
    """
    folder = workdir / "figures"
    labels, logits, classes = found["labels"], found["logits"], list(dataset.classes)
    predictions = logits.argmax(axis=-1)
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)

    matrix = metrics.confusion_matrix(labels, predictions, len(classes))
    figures.confusion(matrix, classes, folder / "confusion.png")
    rows = ([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    files.write_csv(workdir / "confusion.csv", ["truth", *classes], rows)
    per_class.write(workdir, classes, labels, probabilities)
    rng = np.random.default_rng(config.seed)
    shown = figures.choose_examples(labels, predictions, 32, rng)
    prepare, source = make_transform(config, train=False), dataset.splits["test"]
    figures.prediction_grid(
        np.stack([prepare(source[int(i)])["inputs"] for i in shown]),
        labels[shown],
        predictions[shown],
        probabilities[shown],
        classes,
        folder / "predictions.png",
    )
    worst = mistakes.worst(labels, probabilities)
    examples = [index for index, _ in worst]
    mistakes.draw(
        [prepare(source[index])["inputs"] for index in examples],
        worst,
        labels,
        probabilities,
        mistakes.names_of(source, examples),
        classes,
        folder / "mistakes.png",
    )
    if found["mixtures"]:
        by_class = {
            layer: mean_by_class(weights, labels, len(classes))
            for layer, weights in found["mixtures"].items()
        }
        figures.attention_by_class(by_class, classes, folder / "attention.png")
    maps.save_maps(
        workdir / "maps.npz",
        model,
        variables,
        lambda index: prepare(source[index]),
        labels,
        classes,
        found["mixtures"],
    )


def mean_by_class(weights: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean mixture of each class, `[C, K]`; a class without examples is NaN."""
    with np.errstate(invalid="ignore"):
        counts = np.bincount(labels, minlength=num_classes)[:, None]
        sums = np.zeros((num_classes, weights.shape[1]))
        np.add.at(sums, labels, weights)
        return sums / counts
