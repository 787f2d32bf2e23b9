"""Classification: a network, cross-entropy, accuracy, and the pictures of a run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn import models
from dyn.diagnostics import sown_weights
from experiments.core import files
from experiments.core.errors import UserError
from experiments.data import Dataset, transforms
from experiments.figures import classification as figures
from experiments.figures import examples as mistakes
from experiments.figures import pr_curves as per_class
from experiments.runs import artifacts as maps
from experiments.tasks import backbone
from experiments.tasks.backbone import CONVS, NETWORKS, make_layer, make_network
from experiments.tasks.metrics import classification_sums, confusion_matrix, means
from experiments.tasks.mixing import mix
from experiments.tasks.task import Array, Batch, Loss, Task, Variables

SERIES_NETS = {"net1": models.Net1, "net2": models.Net2}


class Classification(Task):
    """Assigns one class to each example: cross-entropy, ranked by accuracy."""

    metric = "accuracy"
    augmentations = (*transforms.AUGMENTATIONS, "spectrogram")
    sections = (*backbone.SECTIONS, "series", "mixing")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns a network for pictures or series with a logit for each class."""
        network = self.config.model.network
        if network in NETWORKS:
            return make_network(self.config, num_classes, spatial_axes)
        if network not in SERIES_NETS:
            choices = (*NETWORKS, *SERIES_NETS)
            raise UserError(
                f"--config.model.network={network}: choose one of {', '.join(choices)}."
            )
        return SERIES_NETS[network](
            num_classes=num_classes,
            conv=make_layer(self.config, "conv", CONVS),
            dropout=self.config.model.dropout,
            dtype=jnp.dtype(self.config.dtype),
            **self.config.series,
        )

    def compute_loss(
        self,
        model: nn.Module,
        variables: Variables,
        batch: Batch,
        rng: Array,
        head_only: bool = False,
    ) -> Loss:
        """Returns the mean cross-entropy of a batch, which may be mixed (see `mixing`)."""
        drop, draw = jax.random.split(rng)
        inputs, targets = mix(self.config, batch["inputs"], batch["label"], model.num_classes, draw)
        logits, changed = apply_in_training(model, variables, inputs, drop, head_only)
        value = optax.losses.softmax_cross_entropy(logits, targets).mean()
        accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32))
        return value, ({"loss": value, "accuracy": accuracy}, changed)

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, float]:
        """Returns loss, accuracies, and precision, recall and F1; see `metrics.means`."""
        total: dict[str, np.ndarray] = {}
        for of_batch in sums:
            total = {
                name: total.get(name, 0.0) + np.asarray(value, np.float64)
                for name, value in of_batch.items()
            }
        return means(total)

    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns what a batch adds to the loss and the counts of each class."""
        logits = model.apply(variables, batch["inputs"], train=False).astype(jnp.float32)
        return classification_sums(logits, batch["label"], batch["mask"])

    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns labels, logits and mixtures; see `inspect_classifier`."""
        return inspect_classifier(model, variables, batch)

    def predict(self, model: nn.Module, variables: Variables, inputs: Array) -> Array:
        """Returns the probability of each class, `[B, C]`."""
        return jax.nn.softmax(model.apply(variables, inputs, train=False).astype(jnp.float32))

    def draw_figures(
        self,
        model: nn.Module,
        variables: Variables,
        inspected: Mapping[str, Any],
        metrics: Mapping[str, Any],
        dataset: Dataset,
        workdir: Path,
        seed: int,
    ) -> None:
        """Draws predictions, mistakes, confusions, curves and attention; writes them down for each class.

        `maps.npz` keeps what reports draw of several runs together.
        """
        folder = workdir / "figures"
        labels, logits, classes = inspected["labels"], inspected["logits"], list(dataset.classes)
        predictions = logits.argmax(axis=-1)
        probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)

        matrix = confusion_matrix(labels, predictions, len(classes))
        figures.confusion(matrix, classes, folder / "confusion.png")
        rows = ([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
        files.write_csv(workdir / "confusion.csv", ["truth", *classes], rows)
        per_class.write(workdir, classes, labels, probabilities)
        rng = np.random.default_rng(seed)
        shown = figures.choose_examples(labels, predictions, 32, rng)
        prepare, source = self.make_transform(train=False), dataset.splits["test"]
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
        if inspected["mixtures"]:
            by_class = {
                layer: mean_by_class(weights, labels, len(classes))
                for layer, weights in inspected["mixtures"].items()
            }
            figures.attention_by_class(by_class, classes, folder / "attention.png")
        maps.save_maps(
            workdir / "maps.npz",
            model,
            variables,
            lambda index: prepare(source[index]),
            labels,
            classes,
            inspected["mixtures"],
        )


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


def apply_in_training(
    model: nn.Module, variables: Variables, inputs: Array, rng: Array, head_only: bool
) -> tuple[Array, dict[str, Any]]:
    """Returns the logits of a batch, float32, and the variable collections that changed."""
    logits, changed = model.apply(
        variables,
        inputs,
        train=True,
        # Networks for series do not take the argument.
        **({"head_only": True} if head_only else {}),
        # Layers with norms of their own leave the running averages alone where these cannot change.
        mutable=["losses"] if head_only else ["batch_stats", "losses"],
        rngs={"dropout": rng},
    )
    return logits.astype(jnp.float32), dict(changed)


def mean_by_class(weights: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the mean mixture of each class, `[C, K]`; NaN for a class without examples."""
    with np.errstate(invalid="ignore"):
        counts = np.bincount(labels, minlength=num_classes)[:, None]
        sums = np.zeros((num_classes, weights.shape[1]))
        np.add.at(sums, labels, weights)
        return sums / counts
