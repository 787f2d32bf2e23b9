"""Detection and instance segmentation: Faster R-CNN, Mask R-CNN and CondInst over any backbone."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn import models
from dyn.layers.norms import GroupNorm
from dyn.models import Detections
from experiments.configs.shared.settings import MOBILE_NETWORKS
from experiments.core.errors import UserError
from experiments.core.files import write_csv
from experiments.data import Dataset, Example, instance_transforms
from experiments.data.instances import paint_classes
from experiments.data.masks import IGNORE
from experiments.figures.objects import Drawn, draw_class_precision, draw_detections
from experiments.figures.segmentation import draw_iou
from experiments.runs.artifacts import save_samples
from experiments.tasks.backbone import NETWORK_SECTIONS, describe_backbone
from experiments.tasks.instance_metrics import (
    Annotation,
    Overlaps,
    average_known,
    compute_coco_ap,
    compute_voc_ap,
    cut_void,
    describe_objects,
    list_class_rows,
    measure_overlaps,
    measure_void,
)
from experiments.tasks.metrics import name_values
from experiments.tasks.objects import (
    Objects,
    list_true_objects,
    paint_objects,
    restore_objects,
)
from experiments.tasks.segmentation_metrics import compute_scores, count_pixels
from experiments.tasks.task import Array, Batch, Loss, Results, Task, Transform, Variables

SHOWN = 8  # pictures of each figure
GROUPS = 32  # of group norms, where a network is wide enough
MOBILE_GROUPS = 8  # their widths are multiples of 8


class InstanceSegmentation(Task):
    """Finds the objects of a picture: their boxes, classes and masks.

    Evaluations are ranked by the mIoU of the painted objects. It rises from the first evaluation on, where
    average precision is still 0; all three detectors have it, and so have the networks of `Segmentation`.
    """

    metric = "miou"
    augmentations = instance_transforms.AUGMENTATIONS
    sections = (*NETWORK_SECTIONS, "detector")
    network_inputs = ("inputs", "sizes")

    def make_model(self, num_classes: int, spatial_axes: int) -> nn.Module:
        """Returns the detector of `config.detector` over the network of `config.model`."""
        del spatial_axes
        model, detector = self.config.model, self.config.detector
        if model.network == "vgg16" or (model.network == "resnet" and model.depth == 6):
            name = "a ResNet of depth 6" if model.network == "resnet" else model.network
            raise UserError(
                f"{name} does not have the four stages that a detector looks at: choose "
                "--config.model.network=resnet with --config.model.depth=10 or more, or a mobile network."
            )
        # The backbone's attention follows whether statistics may change, and its norms `freeze_norms`.
        return models.create_model(
            detector.name,
            num_classes=num_classes,
            backbone={**describe_backbone(self.config), **self._describe_norm()},
            settings=self._make_settings(),
            freeze_norms=detector.norm != "batch",
            dtype=self.config.dtype,
        )

    def _describe_norm(self) -> dict[str, Any]:
        model = self.config.model
        if self.config.detector.norm != "group":
            return {}
        groups = MOBILE_GROUPS
        if model.network not in MOBILE_NETWORKS:
            # All stages are as wide as the first, or a multiple.
            groups = max(n for n in range(1, GROUPS + 1) if model.width % n == 0)
        return {"norm": partial(GroupNorm, num_groups=groups)}

    def _make_settings(self) -> models.RCNNSettings | models.CondInstSettings:
        """Returns the numbers of the detector: the published ones, or those for small pictures."""
        small = self.config.detector.size == "small"
        if self.config.detector.name == "cond_inst":
            return models.make_small_condinst_settings() if small else models.CondInstSettings()
        return (
            models.make_small_settings(self.config.image_size) if small else models.RCNNSettings()
        )

    def make_transform(self, train: bool) -> Transform:
        """Returns the function that prepares a picture and its map of objects for the network."""
        return instance_transforms.make_transform(
            self.config.augment,
            self.config.image_size,
            **self.config.normalise,
            max_objects=self.config.detector.objects,
            train=train,
        )

    def compute_loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: Array, head_only: bool
    ) -> Loss:
        """Returns the sum of the detector's losses, which are metrics as well."""
        del head_only  # there is no classifier that could learn alone
        sampling, dropout = jax.random.split(rng)
        frozen = self.config.detector.norm == "frozen"
        losses, changed = model.apply(
            variables,
            batch["inputs"],
            models.make_targets(batch["ids"], batch["classes"], batch["sizes"]),
            batch["sizes"],
            train=True,
            mutable=["losses"] if frozen else ["batch_stats", "losses"],
            rngs={"sampling": sampling, "dropout": dropout},
        )
        loss = sum_losses(losses)
        return loss, ({"loss": loss, **losses}, dict(changed))

    def sum_metrics(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Returns the detections, and the loss of the pictures that are not padding."""
        real = batch["mask"] > 0
        targets = models.make_targets(batch["ids"], batch["classes"], batch["sizes"])
        targets["counts"] = real
        losses = model.apply(
            variables,
            batch["inputs"],
            targets,
            batch["sizes"],
            train=False,
            # The same samples in every evaluation, whose losses are compared.
            rngs={"sampling": jax.random.key(0)},
        )
        count = jnp.sum(batch["mask"])
        return {
            **self.inspect_batch(model, variables, batch),
            "loss": sum_losses(losses) * count,
            "count": count,
            "mask": batch["mask"],
        }

    def compute_metrics(
        self, sums: Iterable[Mapping[str, np.ndarray]], dataset: Dataset, split: str
    ) -> dict[str, Any]:
        """Returns loss, mIoU of the painted objects, and average precision as VOC and COCO define it.

        Detections are brought back to the size of their pictures and compared with the untouched objects.
        """
        source, judged = dataset.splits[split], []
        total, count = 0.0, 0.0
        for batch in sums:
            total, count = total + float(batch["loss"]), count + float(batch["count"])
            for row in np.flatnonzero(batch["mask"]):
                objects = restore_row(batch, row)
                threshold = self.config.detector.threshold
                classes = len(dataset.classes)
                judged.append(judge_picture(objects, source[len(judged)], classes, threshold))
        with_masks = self.config.detector.name != "faster_rcnn"
        metrics = summarise(judged, dataset.classes, with_masks)
        return {"loss": total / max(count, 1.0), **metrics}

    def inspect_batch(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Any]:
        """Returns the detections."""
        found = self.predict(model, variables, batch["inputs"], batch["sizes"])
        return {**found._asdict(), "geometry": batch["geometry"]}

    def predict(
        self, model: nn.Module, variables: Variables, inputs: Array, sizes: Array | None = None
    ) -> Detections:
        """Returns the detections `[B, K, ...]` in pictures of these sizes without their filling."""
        return model.apply(variables, inputs, sizes=sizes, train=False)

    def postprocess(self, prediction: Detections, example: Example) -> Objects:
        """Returns the objects at the size of the original picture."""
        return restore_objects(*prediction, example["geometry"])

    def draw_figures(self, results: Results) -> None:
        """Draws test pictures with true and found objects, the best and the worst, and classes by precision.

        `per_class.csv` has the metrics of each class, and `samples.npz` what reports draw of several runs
        together.
        """
        dataset, metrics = results.dataset, results.metrics
        source, figures = dataset.splits["test"], results.workdir / "figures"
        threshold, classes = self.config.detector.threshold, dataset.classes

        def restore(n: int) -> Objects:
            return restore_row(results.inspected, n, threshold)

        quality = np.array(
            [
                self._measure_painting(restore(n), source[n], len(classes))
                for n in range(len(source))
            ]
        )
        # Spread over the split: neighbours may come from the same scene.
        spread = np.unique(np.linspace(0, len(source) - 1, min(SHOWN, len(source))).astype(int))
        order = np.argsort(-quality, kind="stable")
        half = min(SHOWN // 2, len(order) // 2)
        extremes = np.concatenate([order[:half], order[len(order) - half :]])
        caption = f"Objects with a score above {threshold:g}; mIoU of each picture."
        for name, title, shown in (
            ("detections", "Detected objects in test pictures", spread),
            ("best_and_worst", "The best and the worst test pictures", extremes),
        ):
            if not len(shown):
                continue
            examples = [source[int(n)] for n in shown]
            draw_detections(
                [example["inputs"] for example in examples],
                (_draw(list_true_objects(e["label"], e["classes"])) for e in examples),
                (_draw(found, found.scores) for found in map(restore, shown)),
                [f"found, mIoU {quality[n]:.2f}" for n in shown],
                classes,
                title,
                caption,
                figures / f"{name}.png",
            )
        self._save_painted(results, spread)
        masks = self.config.detector.name != "faster_rcnn"
        what = "masks" if masks else "boxes"
        draw_class_precision(
            {
                f"AP50 of {what} (VOC)": metrics["class_ap50"],
                f"AP of {what} (COCO)": metrics["class_ap"],
            },
            f"Precision by class: AP50 {metrics['ap50']:.3f}",
            figures / "ap.png",
        )
        draw_iou(metrics["iou"], figures / "iou.png")
        columns = ("class_ap50", "class_ap", "iou")
        header = ("label", "objects", "ap50", "ap", "iou")
        rows = list_class_rows(metrics, columns, metrics["objects"])
        write_csv(results.workdir / "per_class.csv", header, rows)

    def _measure_painting(self, found: Objects, example: Example, num_classes: int) -> float:
        """Returns the mIoU of one picture; 0 where nothing can be counted."""
        matrix = count_painted(found, example, num_classes, self.config.detector.threshold)
        miou = compute_scores(matrix)["miou"]
        return 0.0 if np.isnan(miou) else miou

    def _save_painted(self, results: Results, shown: np.ndarray) -> None:
        source, threshold = results.dataset.splits["test"], self.config.detector.threshold
        examples = [source[int(n)] for n in shown]
        painted = [
            paint_objects(restore_row(results.inspected, n, threshold), e["label"].shape, threshold)
            for n, e in zip(shown, examples, strict=True)
        ]
        truths = [paint_classes(e["label"], e["classes"]) for e in examples]
        images = [e["inputs"] for e in examples]
        path = results.workdir / "samples.npz"
        save_samples(path, images, truths, painted, results.dataset.classes)


class Judged(NamedTuple):
    """A picture, its true and its found objects, as the metrics of a split need them.

    Attributes:
        size: `(H, W)`.
        matrix: `[C, C]`, the confusion of the painted pixels.
        overlaps: for VOC's average precision.
        truths: the true objects as COCO's annotations.
        found: the found objects.
    """

    size: tuple[int, int]
    matrix: np.ndarray
    overlaps: Overlaps
    truths: list[Annotation]
    found: list[Annotation]


def sum_losses(losses: Mapping[str, Array]) -> Array:
    """Returns the sum of a detector's losses, in float32."""
    return sum(loss.astype(jnp.float32) for loss in losses.values())


def restore_row(batch: Mapping[str, Any], row: int, threshold: float = -np.inf) -> Objects:
    """Returns the objects of one picture of a batch, at the size of the original picture.

    Those with a score of `threshold` or less are left out before their masks take memory.
    """
    chosen, masks = batch["scores"][row] > threshold, batch["masks"]
    return restore_objects(
        *(batch[name][row][chosen] for name in ("boxes", "scores", "labels")),
        None if masks is None else masks[row][chosen],
        batch["geometry"][row],
    )


def _draw(objects: Objects, scores: np.ndarray | None = None) -> Drawn:
    return Drawn(objects.boxes, objects.labels, scores, objects.masks)


def count_painted(
    found: Objects, example: Example, num_classes: int, threshold: float
) -> np.ndarray:
    """Returns the confusion matrix `[C, C]` of the true and the painted pixels of a picture."""
    truth = paint_classes(example["label"], example["classes"])
    return count_pixels(truth, paint_objects(found, truth.shape, threshold), num_classes)


def judge_picture(found: Objects, example: Example, num_classes: int, threshold: float) -> Judged:
    """Compares the found objects of a picture with an example of the data set.

    Pixels that belong to nothing (255) are taken out of the masks of found objects first, as they are in no
    true mask. Where an example has COCO's `annotations`, whose masks may overlap, average precision compares
    whole masks with these.

    A found object with an IoU below 0.5 with every true object, of whose mask (or box, without masks) half or
    more is 255, has found something that is ignored: it is neither right nor wrong. COCO's average precision
    has its own rule of this kind for crowds.

    Args:
        found: the found objects.
        example: `label` `[H, W]`, `classes`, and `annotations` if there are any.
        num_classes: C, with the background.
        threshold: score from which objects are painted.
    """
    matrix = count_painted(found, example, num_classes, threshold)
    described, void = describe_objects(found), example["label"] == IGNORE
    ignored = measure_void(described, void) >= 0.5
    annotations = example.get("annotations")
    if annotations is None:
        truths = describe_objects(list_true_objects(example["label"], example["classes"]))
        described = cut_void(described, void)
    else:
        truths = [one for one in annotations if not one["iscrowd"]]
    overlaps = measure_overlaps(described, truths)
    counted = ~ignored | (overlaps.iou.max(axis=1, initial=0) >= 0.5)
    if annotations is None:
        described = list(compress(described, counted))
    scores, labels, iou = (field[counted] for field in overlaps[:3])
    overlaps = Overlaps(scores, labels, iou, overlaps.truths)
    return Judged(void.shape, matrix, overlaps, list(annotations or truths), described)


def summarise(judged: Sequence[Judged], classes: Sequence[str], with_masks: bool) -> dict[str, Any]:
    """Returns the metrics of a split: of the painted pixels, and average precision of boxes and masks."""
    number = len(classes)
    scores = compute_scores(np.sum([one.matrix for one in judged], axis=0))
    scores["iou"] = name_values(classes, scores["iou"])
    voc = compute_voc_ap([one.overlaps for one in judged], number)
    truths, found, sizes = (
        [getattr(one, n) for one in judged] for n in ("truths", "found", "size")
    )
    metrics: dict[str, Any] = {**scores, "ap50": average_known(voc)}
    by_class = np.full(number, np.nan)
    for name, kind in (("box", "bbox"), ("mask", "segm"))[: 1 + with_masks]:
        coco = compute_coco_ap(truths, found, sizes, number, kind)
        by_class = coco.by_class
        metrics |= {f"{name}_ap": coco.ap, f"{name}_ap50": coco.ap50, f"{name}_ap75": coco.ap75}
        by_size = zip(("small", "medium", "large"), coco.by_size, strict=True)
        metrics[f"{name}_ap_by_size"] = {n: None if np.isnan(v) else v for n, v in by_size}
    labels = np.concatenate([one.overlaps.truths for one in judged] or [np.zeros(0, int)])
    counts = np.bincount(labels, minlength=number)
    return {
        **metrics,
        "class_ap50": dict(list(name_values(classes, voc).items())[1:]),
        "class_ap": dict(list(name_values(classes, by_class).items())[1:]),
        "objects": dict(zip(classes[1:], counts[1:].tolist(), strict=True)),
    }
