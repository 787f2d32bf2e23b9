"""Segmentation: a class per pixel, by FCN or DeepLabV3+ over a residual or a mobile network."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dyn import models
from experiments.configs.shared.layers import HEADS
from experiments.configs.shared.settings import MOBILE_NETWORKS
from experiments.core.errors import UserError
from experiments.data import Dataset, Example, mask_transforms
from experiments.data.masks import IGNORE
from experiments.figures.segmentation import draw_iou, draw_samples
from experiments.runs.artifacts import save_samples
from experiments.tasks.backbone import (
    NETWORK_SECTIONS,
    apply_in_training,
    describe_backbone,
    describe_layer,
)
from experiments.tasks.information import read_information
from experiments.tasks.metrics import name_values
from experiments.tasks.segmentation_metrics import compute_scores, count_pixels
from experiments.tasks.task import Array, Batch, Loss, Results, Task, Transform, Variables


class Segmentation(Task):
    """Assigns a class to each pixel: cross-entropy, ranked by the mean intersection over union."""

    metric = "miou"
    augmentations = mask_transforms.AUGMENTATIONS
    sections = (*NETWORK_SECTIONS, "head", "mixing", "mixture")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns a head over a network that keeps `config.model.output_stride`."""
        model = self.config.model
        if model.network not in ("resnet", *MOBILE_NETWORKS):
            raise UserError(
                f"--config.model.network={model.network}: segmentation needs a resnet or a mobile network, "
                "whose stages can dilate instead of striding."
            )
        backbone = describe_backbone(self.config)
        head = describe_layer(self.config, "head", HEADS) or {}
        if head["name"] == "deeplabv3plus" and model.network in MOBILE_NETWORKS:
            head["fine_stage"] = 2
        return models.create_model(
            head.pop("name"),
            **head,
            num_classes=num_classes,
            backbone={**backbone, "output_stride": model.output_stride},
            dropout=model.dropout,
            dtype=self.config.dtype,
        )

    def make_transform(self, train: bool) -> Transform:
        """Returns the function that prepares a picture and its mask for the network."""
        return mask_transforms.make_transform(
            self.config.augment, self.config.image_size, **self.config.normalise, train=train
        )

    def compute_loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: Array, head_only: bool
    ) -> Loss:
        """Returns the mean cross-entropy of the pixels that are not 255."""
        del head_only  # `validate` refuses it
        logits, changed = apply_in_training(
            model, variables, batch["inputs"], rng, information=read_information(self.config)
        )
        total, hits, count = sum_pixels(logits, batch["label"], self.config.mixing.label_smoothing)
        count = jnp.maximum(count, 1.0)  # all pixels of a crop may be 255
        value = total / count
        return value, ({"loss": value, "accuracy": hits / count}, changed)

    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns the predicted class of each pixel, and what the batch adds to the loss."""
        logits = model.apply(variables, batch["inputs"], train=False)
        labels = jnp.where(batch["mask"][:, None, None] > 0, batch["label"], IGNORE)
        total, _, count = sum_pixels(logits, labels)
        return {
            "loss": total,
            "count": count,
            "predictions": jnp.argmax(logits, axis=-1).astype(jnp.uint8),
            "geometry": batch["geometry"],
            "mask": batch["mask"],
        }

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, Any]:
        """Returns loss, mIoU, accuracies and the IoU of each class.

        Predictions are brought back to the size of their pictures and compared with the untouched masks; one
        confusion matrix counts the pixels of the whole split.
        """
        source, classes = dataset.splits[split], dataset.classes
        matrix = np.zeros((len(classes), len(classes)), np.int64)
        total, count, index = 0.0, 0.0, 0
        for batch in sums:
            total, count = total + float(batch["loss"]), count + float(batch["count"])
            for prediction, geometry, real in zip(
                batch["predictions"], batch["geometry"], batch["mask"], strict=True
            ):
                if real:
                    restored = mask_transforms.restore_size(prediction, geometry)
                    matrix += count_pixels(source[index]["label"], restored, len(classes))
                    index += 1
        scores = compute_scores(matrix)
        iou = name_values(classes, scores["iou"])
        return {"loss": total / max(count, 1.0), **scores, "iou": iou}

    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns the predicted class of each pixel."""
        predictions = self.predict(model, variables, batch["inputs"])
        return {"predictions": predictions, "geometry": batch["geometry"]}

    def predict(self, model: nn.Module, variables: Variables, inputs: Array) -> Array:
        """Returns the class of each pixel, uint8 `[B, S, S]`."""
        return jnp.argmax(model.apply(variables, inputs, train=False), axis=-1).astype(jnp.uint8)

    def postprocess(self, prediction: np.ndarray, example: Example) -> np.ndarray:
        """Returns a class for each pixel of the original picture, `[H, W]`."""
        return mask_transforms.restore_size(prediction, example["geometry"])

    def draw_figures(self, results: Results) -> None:
        """Draws pictures, truth and prediction side by side, and the IoU of each class.

        `samples.npz` keeps what reports draw of several runs together.
        """
        source = results.dataset.splits["test"]
        # Spread over the split: neighbours may come from the same scene.
        shown = np.unique(np.linspace(0, len(source) - 1, min(8, len(source))).astype(int))
        examples = [source[int(index)] for index in shown]
        images = [example["inputs"] for example in examples]
        truths = [example["label"] for example in examples]
        predictions = [
            mask_transforms.restore_size(
                results.inspected["predictions"][index], results.inspected["geometry"][index]
            )
            for index in shown
        ]
        figures, classes = results.workdir / "figures", results.dataset.classes
        draw_samples(images, truths, {"prediction": predictions}, classes, figures / "samples.png")
        save_samples(results.workdir / "samples.npz", images, truths, predictions, classes)
        draw_iou(results.metrics["iou"], figures / "iou.png")


def sum_pixels(logits: Array, labels: Array, smoothing: float = 0.0) -> tuple[Array, Array, Array]:
    """Returns sums over the pixels that are not 255: their cross-entropy, hits and number.

    The logits are `[B, H, W, C]`, the labels `[B, H, W]`; all classes have the share `smoothing` in common.
    """
    counts = labels != IGNORE
    targets = jax.nn.one_hot(jnp.where(counts, labels, 0), logits.shape[-1], dtype=jnp.float32)
    logits = logits.astype(jnp.float32)
    losses = optax.losses.softmax_cross_entropy(
        logits, optax.losses.smooth_labels(targets, smoothing)
    )
    hits = (jnp.argmax(logits, axis=-1) == labels) & counts
    loss = jnp.sum(jnp.where(counts, losses, jnp.zeros_like(losses)))
    return loss, jnp.sum(hits, dtype=jnp.float32), jnp.sum(counts, dtype=jnp.float32)
