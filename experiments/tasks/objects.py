"""Objects of one picture at its own size, on the host: found ones, true ones, and how they are painted.

Pictures have all sizes, so this is NumPy: a compiled function would be compiled again for each size.
"""

from typing import NamedTuple

import numpy as np

MASK_THRESHOLD = 0.5  # the probability from which a pixel belongs to a mask


class Objects(NamedTuple):
    """The n objects of a picture of H x W pixels; those that a network found come the best first.

    Attributes:
        boxes: float32 `[n, 4]`, (x1, y1, x2, y2) in pixels, x2 and y2 exclusive.
        labels: int32 `[n]`, from 1.
        scores: float32 `[n]`; 1 for true objects.
        masks: bool `[n, H, W]`; None where only boxes are known.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None


def list_true_objects(ids: np.ndarray, classes: np.ndarray) -> Objects:
    """Returns the objects of a map.

    Args:
        ids: integers `[H, W]`: 0 for the background, 1 to n for the objects, 255 for none of them.
        classes: `[n]`, the class of each; objects of class 0 or without a pixel are left out.
    """
    numbers = [k for k in np.unique(ids) if 0 < k <= len(classes) and classes[k - 1] > 0]
    masks = ids == np.array(numbers, ids.dtype)[:, None, None]
    labels = np.array([classes[k - 1] for k in numbers], np.int32)
    return Objects(find_boxes(masks), labels, np.ones(len(numbers), np.float32), masks)


def keep_confident(objects: Objects, threshold: float) -> Objects:
    """Returns the objects with a score above a threshold; they are the first."""
    number = int(np.sum(objects.scores > threshold))
    return Objects(*(None if field is None else field[:number] for field in objects))


def find_boxes(masks: np.ndarray) -> np.ndarray:
    """Returns the boxes `[n, 4]` of masks `[n, H, W]` that have pixels."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        for axis, low in ((0, 0), (1, 1)):
            (places,) = np.nonzero(mask.any(axis=axis))
            box[low], box[low + 2] = places[0], places[-1] + 1
    return boxes


def restore_objects(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    geometry: np.ndarray,
) -> Objects:
    """Returns a network's detections for one picture as objects at the picture's own size.

    Args:
        boxes: `[K, 4]` in pixels of the network's input.
        scores: `[K]`.
        labels: `[K]`; rows with 0 hold no object.
        masks: probabilities `[K, M, M]` within the boxes; None for boxes alone.
        geometry: int `[4]` of `pad_to_square`: H, W, and the height and width within the input.
    """
    height, width, *scaled = (int(number) for number in geometry)
    factor = np.array([width / scaled[1], height / scaled[0]] * 2, np.float32)
    real = labels > 0
    scores, labels, placed = scores[real], labels[real], boxes[real] * factor
    limits = np.array([width, height] * 2, np.float32)
    # Masks belong to the whole box, also to the part of it outside of the picture.
    found = Objects(np.clip(placed, 0, limits), labels, scores)
    if masks is None:
        return found
    pasted = np.zeros((len(placed), height, width), bool)
    for pixels, mask, box in zip(pasted, masks[real], placed, strict=True):
        pixels[:] = paste_mask(mask, box, (height, width))
    return found._replace(masks=pasted)


def paste_mask(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels, bool `[H, W]`, of a mask `[M, M]` of a box `[4]`.

    It interpolates as `dyn.ops.paste_masks`, and computes no more than the pixels of the box.
    """
    pasted = np.zeros(size, bool)
    places, weights = [], []
    for low, high, values, length in zip(box[1::-1], box[:1:-1], mask.shape, size, strict=True):
        extent = max(high - low, 1e-6)
        # Half a value of the mask reaches beyond the box.
        margin = extent / values / 2
        first, last = (int(np.clip(edge, 0, length)) for edge in (low - margin, high + margin + 1))
        t = (np.arange(first, last) + 0.5 - low) / extent * values - 0.5
        places.append(slice(first, last))
        weights.append(np.maximum(1 - np.abs(t[:, None] - np.arange(values)), 0))
    rows, columns = weights
    pasted[places[0], places[1]] = rows @ mask @ columns.T >= MASK_THRESHOLD
    return pasted


def paint_objects(objects: Objects, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Returns a class for each pixel, uint8 `[H, W]`: each object fills what a better one has not.

    It is `dyn.models.paint_detections` for one picture. Objects without masks fill their boxes.

    Args:
        objects: the best first.
        size: `(H, W)`.
        threshold: score that an object must exceed to be painted.
    """
    painted = np.zeros(size, np.uint8)
    for index in np.flatnonzero(objects.scores > threshold):
        here = fill_box(objects.boxes[index], size)
        if objects.masks is not None:
            here = objects.masks[index]
        painted[here & (painted == 0)] = objects.labels[index]
    return painted


def fill_box(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels, bool `[H, W]`, whose centres lie in a box `[4]`."""
    y, x = (np.arange(length) + 0.5 for length in size)
    rows, columns = (y >= box[1]) & (y < box[3]), (x >= box[0]) & (x < box[2])
    return rows[:, None] & columns
