"""Annotations in COCO's format: checks them, makes masks of polygons and run lengths, and maps of objects.

Everything is checked before pycocotools sees it, which trusts its input: of run lengths that do not cover a
picture, it would return memory that it has never written.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from experiments.data import instances, pictures
from experiments.data.dataset import Example

Annotation = dict[str, Any]
"""An object as pycocotools takes it, without its number and its picture's: `category_id`, the number of its
class in the data set, from 1; `segmentation`, its mask, `{'size': [H, W], 'counts': bytes}`; `bbox`, [x, y,
width, height]; `area`, in pixels; `iscrowd`, 0 or 1."""

_DIGITS = 7  # of 5 bits, for a run length; a picture has fewer than 2^31 pixels


def check_annotation(
    raw: Any, class_of_category: Mapping[Any, int], height: int, width: int
) -> Annotation:
    """Returns an annotation of a file, with its mask as run lengths.

    Args:
        raw: the annotation as JSON has it.
        class_of_category: the class number of each `category_id`.
        height, width: of its picture.

    Raises:
        ValueError: if it cannot be used; the message is the reason.
    """
    category = raw.get("category_id")
    if isinstance(category, list | dict) or category not in class_of_category:
        raise ValueError(f"there is no category {category!r}")
    code = encode_segmentation(raw.get("segmentation"), height, width)
    area = int(coco_mask.area(code))
    if not area:
        raise ValueError("its mask has no pixel")
    box = raw.get("bbox")
    if not _is_box(box):
        box = coco_mask.toBbox(code).tolist()
    given = raw.get("area")
    return {
        "category_id": class_of_category[category],
        "segmentation": code,
        "bbox": [float(value) for value in box],
        "area": float(given) if _is_number(given) and given > 0 else float(area),
        "iscrowd": int(bool(raw.get("iscrowd"))),
    }


def outline_box(box: Any, height: int, width: int) -> list[list[int]]:
    """Returns the pixels of a box, [x, y, width, height], inside a picture as a polygon.

    Raises:
        ValueError: if it is no such box.

    Example:
        >>> outline_box([1.5, -2, 3, 4], 6, 8)
        [[1, 0, 5, 0, 5, 2, 1, 2]]
    """
    if not _is_box(box):
        raise ValueError("it has no box")
    left, top = (max(0, math.floor(start)) for start in box[:2])
    right, bottom = min(width, math.ceil(box[0] + box[2])), min(height, math.ceil(box[1] + box[3]))
    if left >= right or top >= bottom:
        raise ValueError("its box has no pixel")
    return [[left, top, right, top, right, bottom, left, bottom]]


def encode_segmentation(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Returns a mask as compressed run lengths, `{'size': [H, W], 'counts': bytes}`.

    Args:
        segmentation: a list of polygons `[x1, y1, x2, y2, ...]`, whose union the mask is, or run lengths,
            `{'size': [H, W], 'counts': ...}`, as a list of numbers or as COCO's text. They go down column
            after column and begin with pixels outside of the mask. Polygons of fewer than three points, which
            have no area, are left out if there are others.
        height, width: of the picture.

    Raises:
        ValueError: if it is something else, or does not fit the picture.

    Example:
        >>> code = encode_segmentation({"size": [2, 3], "counts": [1, 3, 2]}, 2, 3)
        >>> decode_mask(code).astype(int).tolist()
        [[0, 1, 0], [1, 1, 0]]
        >>> code == encode_segmentation({"size": [2, 3], "counts": code["counts"].decode()}, 2, 3)
        True
    """
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if segmentation.get("size") != [height, width]:
            raise ValueError(
                f"its run lengths are for the size {segmentation.get('size')}, not [{height}, {width}]"
            )
        if isinstance(counts, str):
            counts = read_counts(counts)
        if not _is_list_of_numbers(counts) or not all(
            isinstance(count, int) and count >= 0 for count in counts
        ):
            raise ValueError("its run lengths are not whole numbers of 0 or more")
        if sum(counts) != height * width:
            raise ValueError(
                f"its run lengths cover {sum(counts):,} of {height * width:,} pixels of the picture"
            )
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if not segmentation:
        raise ValueError("it has no segmentation, and a box alone is no mask")
    if not isinstance(segmentation, list):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    areas = [one for one in segmentation if not isinstance(one, list) or len(one) >= 6]
    polygons = areas or segmentation
    for polygon in polygons:
        _check_polygon(polygon, height, width)
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def read_counts(text: str) -> list[int]:
    """Returns the run lengths of COCO's compressed text.

    Each character has 5 bits of a number, the lowest ones first; the sixth bit says that more follow. From
    the fourth on, a number is the difference from the run length two places before.

    Raises:
        ValueError: if it is no such text.

    Example:
        >>> read_counts("132N")
        [1, 3, 2, 1]
    """
    counts: list[int] = []
    number = digits = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or digits == _DIGITS:
            raise ValueError(f"its run lengths have the text {text[:20]!r}, which is not COCO's")
        number |= (bits & 31) << 5 * digits
        digits += 1
        if not bits & 32:
            if bits & 16:
                number -= 1 << 5 * digits
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = digits = 0
    if digits:
        raise ValueError("its run lengths end early")
    return counts


def decode_mask(code: Mapping[str, Any]) -> np.ndarray:
    """Returns a mask, bool `[H, W]`, from checked run lengths."""
    return coco_mask.decode(code).astype(bool)


def paint_annotations(
    annotations: Sequence[Annotation], height: int, width: int
) -> instances.Objects:
    """Returns a map of objects, and the class of each.

    A map has one object for each pixel: where several overlap, the one with the fewest pixels. Crowds are
    void where there is no object. Objects that others cover completely are left out.
    """
    objects = [one for one in annotations if not one["iscrowd"]]
    found = np.zeros((height, width), np.int32)
    for crowd in annotations:
        if crowd["iscrowd"]:
            found[decode_mask(crowd["segmentation"])] = len(objects) + 1
    areas = [-int(coco_mask.area(one["segmentation"])) for one in objects]
    for index in np.argsort(areas, kind="stable"):
        found[decode_mask(objects[index]["segmentation"])] = index + 1
    classes = np.array([one["category_id"] for one in objects], np.int32)
    return instances.select_objects(found, classes, instances.MAX_OBJECTS)


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotatedPictures:
    """Pictures with annotations, which are read when they are needed.

    Examples are those of `instances`, and have `annotations`, whose masks may overlap and whose crowds an
    evaluation does not count.

    Attributes:
        paths: the file of each picture.
        annotations: its annotations.
        digests: digest of its content.
        names: its name for messages.
        labels: digest of its annotations, uint64 `[N]`.
    """

    paths: Sequence[Path]
    annotations: Sequence[Sequence[Annotation]]
    digests: Sequence[int]
    names: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path, annotations = self.paths[index], self.annotations[index]
        inputs = pictures.read_picture(path, path)
        ids, classes = paint_annotations(annotations, *inputs.shape[:2])
        return {"inputs": inputs, "label": ids, "classes": classes, "annotations": annotations}


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    """Raises a ValueError if this is not a polygon, or is so large that it would fill the memory."""
    if not _is_list_of_numbers(polygon):
        raise ValueError("a polygon of it is not a list of numbers")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon of it has {len(polygon)} numbers, not three points or more")
    points = np.array(polygon, np.float64).reshape(-1, 2)
    size = np.array([width, height])
    if (points < -size).any() or (points > 2 * size).any():
        raise ValueError("a point of it lies far outside of the picture")
    steps = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1)
    if steps.sum() > 10 * height * width + 1000:
        raise ValueError("a polygon of it is longer than its picture has room for")


def _is_box(box: Any) -> bool:
    return _is_list_of_numbers(box) and len(box) == 4 and min(box[2:]) >= 0


def _is_list_of_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)
