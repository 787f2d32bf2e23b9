"""Segmentation: a class for every pixel, by FCN or DeepLabV3+ over a residual network."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dyn import models
from experiments.core.errors import UserError
from experiments.data import Dataset, Example, mask_transforms
from experiments.data.masks import IGNORE
from experiments.figures import segmentation as segmentation_figures
from experiments.runs import artifacts as maps
from experiments.tasks.backbone import make_backbone, make_layer, with_conv
from experiments.tasks.segmentation_metrics import confusion_matrix, scores

Array = jax.Array
Batch = Mapping[str, Array]

METRIC = "miou"
AUGMENTATIONS = mask_transforms.AUGMENTATIONS
HEADS = {"fcn": models.FCN, "deeplabv3plus": models.DeepLabV3Plus}


def make_model(config: ConfigDict, num_classes: int, spatial_axes: int) -> nn.Module:
    """A head of `config.head` over a residual network that keeps `config.model.output_stride`.

    Raises:
        UserError: for another network, or what does not exist of this one.
    """
    if config.model.network != "resnet":
        raise UserError(
            f"--config.model.network={config.model.network}: a segmentation is made of a resnet, "
            "whose stages can dilate instead of striding."
        )
    head = make_layer(config, "head", HEADS)
    backbone = partial(
        make_backbone(config), num_classes=None, output_stride=config.model.output_stride
    )

    def build(**convs: Any) -> nn.Module:
        return head(
            num_classes=num_classes,
            backbone=partial(backbone, **convs),
            dropout=config.model.dropout,
            dtype=jnp.dtype(config.dtype),
        )

    return with_conv(config, build, spatial_axes)


def make_transform(config: ConfigDict, train: bool) -> Callable[..., Example]:
    """What is done to a picture and its mask before the network sees them."""
    return mask_transforms.make(config.augment, config.image_size, **config.normalise, train=train)


def loss(
    config: ConfigDict, model: nn.Module, variables: Mapping[str, Any], batch: Batch, rng: Array
) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """Mean cross-entropy of the pixels that count: (loss, (metrics, the collections that changed)).

    Among the collections is `losses`, what the layers have sown.
    """
    logits, changed = model.apply(
        variables,
        batch["inputs"],
        train=True,
        mutable=["batch_stats", "losses"],
        rngs={"dropout": rng},
    )
    total, right, count = pixel_sums(logits, batch["label"], config.mixing.label_smoothing)
    count = jnp.maximum(count, 1.0)  # a crop may show nothing that counts
    value = total / count
    return value, ({"loss": value, "accuracy": right / count}, dict(changed))


def pixel_sums(logits: Array, labels: Array, smoothing: float = 0.0) -> tuple[Array, Array, Array]:
    """Sums over the pixels that are not 255: of the cross-entropy, of those that are right, of all.

    Args:
        logits: `[B, H, W, C]`.
        labels: `[B, H, W]` integers.
        smoothing: the share that all classes have in each target.
    """
    counts = labels != IGNORE
    targets = jax.nn.one_hot(jnp.where(counts, labels, 0), logits.shape[-1], dtype=jnp.float32)
    logits = logits.astype(jnp.float32)
    losses = optax.losses.softmax_cross_entropy(
        logits, optax.losses.smooth_labels(targets, smoothing)
    )
    right = (jnp.argmax(logits, axis=-1) == labels) & counts
    zeros = jnp.zeros_like(losses)
    return jnp.sum(jnp.where(counts, losses, zeros)), *(
        jnp.sum(x, dtype=jnp.float32) for x in (right, counts)
    )


def evaluation_sums(
    model: nn.Module, variables: Mapping[str, Any], batch: Batch
) -> dict[str, Array]:
    """The classes of a batch's pixels, and what it adds to the loss."""
    logits = model.apply(variables, batch["inputs"], train=False)
    labels = jnp.where(batch["mask"][:, None, None] > 0, batch["label"], IGNORE)
    total, _, count = pixel_sums(logits, labels)
    return {
        "loss": total,
        "count": count,
        "predictions": jnp.argmax(logits, axis=-1).astype(jnp.uint8),
        "geometry": batch["geometry"],
        "mask": batch["mask"],
    }


def measure(
    config: ConfigDict, outputs: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
) -> dict[str, Any]:
    """Loss, mIoU, accuracies and the IoU of each class, from what `evaluation_sums` gave.

    Predictions are brought back to the size of their pictures and compared with the untouched masks; one
    confusion matrix counts the pixels of the whole split.
    """
    source, classes = dataset.splits[split], dataset.classes
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    total, count, index = 0.0, 0.0, 0
    for batch in outputs:
        total, count = total + float(batch["loss"]), count + float(batch["count"])
        for prediction, geometry, real in zip(
            batch["predictions"], batch["geometry"], batch["mask"], strict=True
        ):
            if real:
                restored = mask_transforms.restore(prediction, geometry)
                matrix += confusion_matrix(source[index]["label"], restored, len(classes))
                index += 1
    found = scores(matrix)
    return {
        "loss": total / max(count, 1.0),
        "miou": found.miou,
        "accuracy": found.pixel_accuracy,
        "mean_accuracy": found.mean_accuracy,
        "iou": {
            name: None if np.isnan(iou) else float(iou)
            for name, iou in zip(classes, found.iou, strict=True)
        },
    }


def inspection(model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """The classes of a batch's pixels."""
    logits = model.apply(variables, batch["inputs"], train=False)
    return {
        "predictions": jnp.argmax(logits, axis=-1).astype(jnp.uint8),
        "geometry": batch["geometry"],
    }


def answer(model: nn.Module, variables: Mapping[str, Any], inputs: Array) -> Array:
    """The class of each pixel, uint8 `[B, S, S]`."""
    return jnp.argmax(model.apply(variables, inputs, train=False), axis=-1).astype(jnp.uint8)


def finish(answer: np.ndarray, example: Example) -> np.ndarray:
    """What is said of one example in the end: a class for each pixel of its picture, `[H, W]`."""
    return mask_transforms.restore(answer, example["geometry"])


def pictures(
    config: ConfigDict,
    model: nn.Module,
    variables: Mapping[str, Any],
    found: Mapping[str, Any],
    test: Mapping[str, Any],
    dataset: Dataset,
    workdir: Path,
) -> None:
    """Draws pictures, truth and prediction side by side, and the IoU of each class.

    What a report shows of several runs together is kept in `samples.npz`.

    Args:
        config: the experiment.
        model: the network.
        variables: of its best evaluation.
        found: `predictions [N, S, S]` and their `geometry [N, 4]`.
        test: the metrics.
        dataset: what was tested on.
        workdir: the run's; figures go into `figures/`.
    """
    folder = workdir / "figures"
    source = dataset.splits["test"]
    # Spread over the split: neighbours may come from the same scene.
    shown = np.unique(np.linspace(0, len(source) - 1, min(8, len(source))).astype(int))
    examples = [source[int(index)] for index in shown]
    restored = [
        mask_transforms.restore(found["predictions"][index], found["geometry"][index])
        for index in shown
    ]
    shown = (
        [example["inputs"] for example in examples],
        [example["label"] for example in examples],
        restored,
        dataset.classes,
    )
    segmentation_figures.samples(*shown, folder / "samples.png")
    maps.save_samples(workdir / "samples.npz", *shown)
    segmentation_figures.iou_by_class(test["iou"], folder / "iou.png")
