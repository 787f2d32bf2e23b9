"""Metrics of found objects: average precision as VOC and as COCO define it, and the mIoU of the painting."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.tasks.objects import Objects

Annotation = dict[str, Any]
"""An object as pycocotools takes it: of a file in COCO's format, or from `describe_objects`."""


class Overlaps(NamedTuple):
    """The overlaps of the n found objects of a picture with its G true ones.

    Attributes:
        scores: `[n]`.
        labels: int `[n]`.
        iou: `[n, G]`.
        truths: int `[G]`, the classes of the true objects.
    """

    scores: np.ndarray
    labels: np.ndarray
    iou: np.ndarray
    truths: np.ndarray


# ---------------------------------------------------------------- VOC


def measure_overlaps(found: Sequence[Annotation], truths: Sequence[Annotation]) -> Overlaps:
    """Returns the IoU of masks, or of boxes if the found objects have no masks; that of empty ones is 0."""
    from pycocotools import mask

    shape = "segmentation" if found and "segmentation" in found[0] else "bbox"
    iou = mask.iou(*([one[shape] for one in side] for side in (found, truths)), [0] * len(truths))
    scores = np.array([one["score"] for one in found], np.float64)
    labels, classes = (
        np.array([one["category_id"] for one in side], np.int32) for side in (found, truths)
    )
    return Overlaps(scores, labels, np.reshape(iou, (len(found), len(truths))), classes)


def measure_void(found: Sequence[Annotation], void: np.ndarray) -> np.ndarray:
    """Returns the share `[n]` of void pixels in found objects: in their masks, or in boxes without masks.

    Args:
        found: n objects as `describe_objects` returns them.
        void: bool `[H, W]`.
    """
    from pycocotools import mask

    if found and "segmentation" in found[0]:
        codes = [one["segmentation"] for one in found]
    else:
        boxes = np.array([one["bbox"] for one in found], np.float64).reshape(-1, 4)
        codes = mask.frPyObjects(boxes, *void.shape)
    # The void is passed as a crowd: there pycocotools divides by the area of the found object.
    return np.reshape(mask.iou(codes, encode_masks([void]), [1]), len(found))


def cut_void(found: Sequence[Annotation], void: np.ndarray) -> list[Annotation]:
    """Returns found objects without the pixels of `void`, bool `[H, W]`, in their masks."""
    from pycocotools import mask

    (rest,) = encode_masks([~void])
    cut = []
    for one in found:
        if "segmentation" in one:
            code = mask.merge([one["segmentation"], rest], intersect=True)
            one = one | {"segmentation": code, "area": float(mask.area(code))}
        cut.append(one)
    return cut


def compute_voc_ap(
    pictures: Sequence[Overlaps], num_classes: int, threshold: float = 0.5
) -> np.ndarray:
    """Returns VOC's average precision of each class, over all pictures of a split.

    Found objects take part in the order of their scores, equal ones in the order of the pictures. Each takes
    the object of its class and picture with the largest IoU. It is right if that IoU is at least `threshold`
    and nobody has taken the object before. The average precision is the area under the largest precision at
    this recall or a higher one.

    Args:
        pictures: the overlaps of each picture.
        num_classes: C, with the background.
        threshold: of the IoU.

    Returns:
        float64 `[C]`; NaN for classes without objects, and for the background.

    Source:
        Everingham et al.: The Pascal Visual Object Classes Challenge: A Retrospective. IJCV 2015; all points,
        as since 2010. With masks it is AP^r of Hariharan, Arbeláez, Girshick, Malik: Simultaneous Detection
        and Segmentation. ECCV 2014.
    """
    precision = np.full(num_classes, np.nan)
    for label in range(1, num_classes):
        number = sum(int(np.sum(picture.truths == label)) for picture in pictures)
        if number:
            precision[label] = _compute_area(*_judge_class(pictures, label, threshold), number)
    return precision


def _judge_class(
    pictures: Sequence[Overlaps], label: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of all found objects of a class, and whether each is right, by picture."""
    scores, right = [], []
    for picture in pictures:
        rows, columns = (
            np.flatnonzero(picture.labels == label),
            np.flatnonzero(picture.truths == label),
        )
        taken = set()
        # Within a picture the order decides who takes an object.
        for row in rows[np.argsort(-picture.scores[rows], kind="stable")]:
            overlaps = picture.iou[row, columns]
            best = int(np.argmax(overlaps)) if len(columns) else -1
            right.append(best >= 0 and overlaps[best] >= threshold and best not in taken)
            scores.append(picture.scores[row])
            if right[-1]:
                taken.add(best)
    return np.array(scores, np.float64), np.array(right, bool)


def _compute_area(scores: np.ndarray, right: np.ndarray, number: int) -> float:
    """Returns the area under the envelope of precision over recall."""
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(envelope * np.diff(hits, prepend=0)) / number)


# ---------------------------------------------------------------- COCO


def encode_masks(masks: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    """Returns masks, bool `[H, W]`, as COCO's run-length codes: `size`, and `counts` as bytes."""
    from pycocotools import mask

    return [mask.encode(np.asfortranarray(one, np.uint8)) for one in masks]


def describe_objects(objects: Objects) -> list[Annotation]:
    """Returns objects as annotations of COCO, without numbers: class, box, mask, area and score."""
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    described = [
        {
            "category_id": int(label),
            "bbox": [float(value) for value in (*box[:2], *side)],
            "area": float(np.prod(side)),
            "iscrowd": 0,
            "score": float(score),
        }
        for label, box, side, score in zip(
            objects.labels, objects.boxes, sides, objects.scores, strict=True
        )
    ]
    if objects.masks is not None:
        for one, mask, code in zip(
            described, objects.masks, encode_masks(objects.masks), strict=True
        ):
            one |= {"segmentation": code, "area": float(mask.sum())}
    return described


class CocoScores(NamedTuple):
    """COCO's average precision; NaN where there are no objects.

    Attributes:
        ap: mean over the classes and the IoUs 0.50, 0.55, ..., 0.95.
        ap50: at an IoU of 0.5.
        ap75: at an IoU of 0.75.
        by_class: `[C]`, that of each class over the ten IoUs; NaN for the background.
        by_size: that of objects below 32^2 pixels, below 96^2, and above.
    """

    ap: float
    ap50: float
    ap75: float
    by_class: np.ndarray
    by_size: tuple[float, float, float]


def compute_coco_ap(
    truths: Sequence[Sequence[Annotation]],
    found: Sequence[Sequence[Annotation]],
    sizes: Sequence[tuple[int, int]],
    num_classes: int,
    kind: str,
) -> CocoScores:
    """Returns COCO's average precision over all pictures of a split, by pycocotools.

    Args:
        truths: the annotations of each picture, as `describe_objects` returns them.
        found: the found objects of each picture, of which the best 100 count.
        sizes: `(H, W)` of each picture.
        num_classes: C, with the background.
        kind: 'bbox' for boxes, 'segm' for masks.

    Raises:
        ModuleNotFoundError: without pycocotools, of the extra `experiments`.

    Source:
        Lin et al.: Microsoft COCO: Common Objects in Context. ECCV 2014; https://cocodataset.org/#detection-eval
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # It reports on what it does.
        # Without a copy, an evaluation of masks would hand its areas to one of boxes.
        sides = [_make_coco(pictures, sizes, num_classes, kind) for pictures in (truths, found)]
        evaluation = COCOeval(*sides, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoUs, recalls, classes, sizes, numbers of detections], -1 for classes without objects.
    precision = np.asarray(evaluation.eval["precision"])[..., -1]
    precision = np.where(precision < 0, np.nan, precision)
    by_class = np.full(num_classes, np.nan)
    by_class[1:] = [average_known(precision[:, :, k, 0]) for k in range(num_classes - 1)]
    return CocoScores(
        *(average_known(precision[chosen][..., 0]) for chosen in (slice(None), 0, 5)),
        by_class,
        tuple(average_known(precision[..., size]) for size in (1, 2, 3)),
    )


def _make_coco(
    pictures: Sequence[Sequence[Annotation]],
    sizes: Sequence[tuple[int, int]],
    num_classes: int,
    kind: str,
) -> Any:
    """Returns the annotations of all pictures as pycocotools takes them."""
    from pycocotools.coco import COCO

    annotations: list[Annotation] = []
    for image, described in enumerate(pictures, 1):
        for one in described:
            annotation = {**one, "id": len(annotations) + 1, "image_id": image}
            if kind == "bbox" and "score" in one:
                annotation["area"] = float(np.prod(one["bbox"][2:]))
            annotations.append(annotation)
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": image, "file_name": "", "height": height, "width": width}
            for image, (height, width) in enumerate(sizes, 1)
        ],
        "categories": [
            {"id": label, "name": str(label), "supercategory": ""}
            for label in range(1, num_classes)
        ],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


# ---------------------------------------------------------------- tables


def average_known(values: Iterable[float]) -> float:
    """Returns the mean of the numbers that are not NaN; NaN if there are none."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def list_class_rows(
    metrics: Mapping[str, Any], columns: Sequence[str], objects: Mapping[str, int]
) -> list[list[Any]]:
    """Returns a row for each class but the background: its name, objects, and values of `columns`."""
    return [
        [name, number, *(metrics[column].get(name) for column in columns)]
        for name, number in objects.items()
    ]
