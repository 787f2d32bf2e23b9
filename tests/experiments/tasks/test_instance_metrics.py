"""Average precision of a set that was judged by hand, and painting, against the library's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn.models import Detections, paint_detections
from dyn.ops import paste_masks
from experiments.tasks import instance_metrics as metrics
from experiments.tasks.objects import (
    Objects,
    find_boxes,
    list_true_objects,
    paint_objects,
    paste_mask,
    restore_objects,
)

SIZE = (120, 120)
# (picture, class, box), and for found objects the score.
TRUTHS = [
    (1, 1, [10, 10, 50, 50]), (1, 1, [60, 60, 100, 90]), (1, 2, [20, 60, 50, 100]),
    (2, 1, [5, 5, 25, 45]), (2, 2, [40, 40, 90, 90]), (3, 1, [0, 0, 30, 30]),
]  # fmt: skip
FOUND = [
    (1, 1, [12, 11, 51, 49], 0.9), (1, 1, [58, 62, 99, 91], 0.6), (1, 1, [11, 12, 48, 52], 0.8),
    (1, 2, [22, 58, 49, 104], 0.7), (2, 1, [5, 15, 25, 55], 0.75), (2, 2, [45, 45, 90, 85], 0.5),
    (2, 2, [40, 40, 90, 90], 0.5), (3, 1, [10, 10, 40, 40], 0.95), (3, 2, [0, 0, 30, 30], 0.65),
]  # fmt: skip


def make_objects(rows, picture, with_masks):
    mine = sorted(
        (row for row in rows if row[0] == picture), key=lambda row: -row[-1] if len(row) > 3 else 0
    )
    boxes = np.array([row[2] for row in mine], np.float32)
    masks = np.zeros((len(mine), *SIZE), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    scores = np.array([row[3] if len(row) > 3 else 1 for row in mine], np.float32)
    labels = np.array([row[1] for row in mine], np.int32)
    return Objects(boxes, labels, scores, masks if with_masks else None)


def make_pictures(with_masks):
    return [[make_objects(rows, n, with_masks) for n in (1, 2, 3)] for rows in (TRUTHS, FOUND)]


@pytest.mark.parametrize("with_masks", [False, True])
def test_voc_counts_a_second_detection_as_wrong(with_masks):
    truths, found = make_pictures(with_masks)
    described = ([metrics.describe_objects(one) for one in side] for side in (found, truths))
    overlaps = [metrics.measure_overlaps(*pair) for pair in zip(*described, strict=True)]
    precision = metrics.compute_voc_ap(overlaps, 4)
    np.testing.assert_allclose(precision, [np.nan, 0.45, 0.8333333, np.nan], rtol=1e-6)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_averages_ten_thresholds(kind):
    truths, found = (
        [metrics.describe_objects(one) for one in side] for side in make_pictures(True)
    )
    scores = metrics.compute_coco_ap(truths, found, [SIZE] * 3, 4, kind)
    np.testing.assert_allclose(scores.by_class, [np.nan, 0.239406, 0.543234, np.nan], atol=5e-7)
    ap50, ap75 = (0.451485 + 0.834983) / 2, (0.227723 + 0.752475) / 2
    np.testing.assert_allclose(scores[:3], [0.391320, ap50, ap75], atol=1e-6)
    assert len(scores.by_size) == 3 and scores.by_size[1] > 0


def test_nothing_found_is_zero_and_nothing_there_is_not_a_number():
    truths, _ = make_pictures(True)
    described = [metrics.describe_objects(one) for one in truths]
    scores = metrics.compute_coco_ap(described, [[]] * 3, [SIZE] * 3, 3, "segm")
    assert scores.ap == 0 and (scores.by_class[1:] == 0).all()
    assert np.isnan(metrics.compute_coco_ap([[]], [[]], [SIZE], 3, "bbox").ap)
    nothing = metrics.Overlaps(np.zeros(0), np.zeros(0, int), np.zeros((0, 1)), np.ones(1, int))
    assert metrics.compute_voc_ap([nothing], 2)[1] == 0
    empty = Objects(*(np.zeros(shape) for shape in ((0, 4), 0, 0, (0, 5, 5))))
    nobody, (somebody, *_) = metrics.describe_objects(empty), described
    assert metrics.measure_overlaps(nobody, somebody).iou.shape == (0, 3)
    assert metrics.measure_overlaps(somebody, nobody).iou.shape == (3, 0)
    assert metrics.measure_void(nobody, np.ones(SIZE, bool)).shape == (0,)


def test_true_objects_are_those_with_pixels_and_a_class():
    ids = np.zeros((6, 8), np.uint8)
    ids[1:3, 2:5], ids[4, 6], ids[5] = 1, 3, 255
    ids[0, 0] = 4  # of no class
    truth = list_true_objects(ids, np.array([7, 8, 9, 0]))
    assert truth.labels.tolist() == [7, 9]
    assert truth.boxes.tolist() == [[2, 1, 5, 3], [6, 4, 7, 5]]
    np.testing.assert_array_equal(find_boxes(truth.masks), truth.boxes)


def test_objects_are_pasted_and_painted_as_in_the_library(rng):
    size, number = (40, 56), 12
    low = rng.uniform(-12, 40, (number, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 30, (number, 2))], axis=1).astype(
        np.float32
    )
    boxes[0] = [3, 3, 3, 9]
    masks = rng.random((number, 8, 8)).astype(np.float32)
    scores = np.sort(rng.random(number).astype(np.float32))[::-1]
    labels = rng.integers(1, 9, number).astype(np.int32)
    values = np.asarray(jax.jit(paste_masks, static_argnums=2)(masks, boxes, size))
    for mask, box, expected in zip(masks, boxes, values, strict=True):
        pasted = paste_mask(mask, box, size)
        np.testing.assert_array_equal(
            pasted[abs(expected - 0.5) > 1e-4], (expected >= 0.5)[abs(expected - 0.5) > 1e-4]
        )
    for own_masks in (masks, None):
        rows = (boxes, scores, labels, own_masks)
        found = Detections(*(None if x is None else jnp.asarray(x)[None] for x in rows))
        expected = np.asarray(jax.jit(paint_detections, static_argnums=(1, 2))(found, size, 0.3))[0]
        objects = restore_objects(*rows, np.array([*size, *size]))
        assert (paint_objects(objects, size, 0.3) != expected).mean() < 1e-3
    assert expected.any()


def test_detections_return_to_the_size_of_the_picture():
    boxes = np.array([[8, 4, 16, 12], [0, 0, 1, 1]], np.float32)
    masks = np.ones((2, 4, 4), np.float32)
    geometry = np.array([60, 40, 30, 20])  # 60 x 40 became 30 x 20
    found = restore_objects(boxes, np.array([0.9, 0.0]), np.array([3, 0]), masks, geometry)
    assert found.boxes.tolist() == [[16, 8, 32, 24]] and found.labels.tolist() == [3]
    assert found.masks.shape == (1, 60, 40) and found.masks.sum() == 16 * 16 - 4  # the corners
    beyond = restore_objects(2 * boxes, np.array([0.9, 0.0]), np.array([3, 0]), masks, geometry)
    assert (
        beyond.boxes.tolist() == [[32, 16, 40, 48]] and 8 * 32 - 16 < beyond.masks.sum() <= 8 * 32
    )
