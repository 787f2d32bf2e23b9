"""Judging a picture: objects that are ignored, crowds, masks that overlap, and the memory that it takes."""

import tracemalloc
import weakref

import numpy as np
import pytest

from experiments.data.coco_annotations import paint_annotations
from experiments.data.instances import find_components
from experiments.figures.objects import Drawn, draw_detections
from experiments.tasks.instance_metrics import describe_objects
from experiments.tasks.instance_segmentation import judge_picture, restore_row, summarise
from experiments.tasks.objects import Objects, find_boxes, keep_confident

SIZE = (100, 100)


def fill(x1, y1, x2, y2):
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def find(*pairs, with_masks=True):
    """Returns found objects of masks and labels, the best first."""
    masks, labels = np.array([mask for mask, _ in pairs]), [label for _, label in pairs]
    scores = np.linspace(0.9, 0.6, len(pairs), dtype=np.float32)
    return Objects(
        find_boxes(masks), np.array(labels, np.int32), scores, masks if with_masks else None
    )


def annotate(objects, crowds=()):
    """Returns an example with the annotations of objects, of which those in `crowds` are crowds."""
    annotations = [
        {**one, "iscrowd": int(number in crowds)}
        for number, one in enumerate(describe_objects(objects))
    ]
    ids, classes = paint_annotations(annotations, *SIZE)
    return {"label": ids, "classes": classes, "annotations": annotations}


def judge(found, example, classes):
    judged = judge_picture(found, example, len(classes), 0.5)
    return summarise([judged], classes, found.masks is not None)


def collect_ap50(values):
    """Returns the different values of VOC's and COCO's average precision, of boxes and of masks."""
    names = ("ap50", "box_ap50", "mask_ap50")
    return {round(values[name], 2) for name in names if name in values}


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_found_object_that_is_ignored_is_no_false_alarm(with_masks):
    large, small = fill(5, 5, 25, 25), fill(40, 40, 47, 47)  # 49 pixels are too few for an object
    ids, classes = find_components((large | small).astype(np.uint8))
    example = {"label": ids, "classes": classes}
    assert ids[43, 43] == 255 and len(classes) == 1
    both = find((small, 1), (large, 1), with_masks=with_masks)
    values = judge(both, example, ("ground", "cell"))
    assert collect_ap50(values) == {1}
    # On the ground it still is one.
    elsewhere = find((fill(60, 60, 67, 67), 1), (large, 1), with_masks=with_masks)
    assert collect_ap50(judge(elsewhere, example, ("ground", "cell"))) == {0.5}


def test_an_object_below_much_void_is_still_found():
    ids = np.zeros(SIZE, np.uint8)
    ids[10:20, 10:20], ids[20:40, 10:20] = 1, 255
    example = {"label": ids, "classes": np.array([1])}
    values = judge(find((fill(10, 10, 20, 40), 1)), example, ("ground", "cell"))
    assert values["ap50"] == pytest.approx(values["mask_ap50"]) == 1


@pytest.mark.parametrize("with_masks", [True, False])
def test_objects_in_a_crowd_are_no_false_alarms(with_masks):
    person, crowd = fill(5, 5, 25, 25), fill(50, 50, 90, 90)
    example = annotate(find((person, 1), (crowd, 1)), crowds=[1])
    found = find((fill(55, 55, 70, 70), 1), (person, 1), with_masks=with_masks)
    values = judge(found, example, ("ground", "person"))
    assert collect_ap50(values) == {1}
    assert values["objects"] == {"person": 1}
    outside = find((fill(20, 55, 35, 70), 1), (person, 1), with_masks=with_masks)
    assert collect_ap50(judge(outside, example, ("ground", "person"))) == {0.5}


def test_annotated_masks_are_compared_whole():
    rider, horse, hidden = fill(10, 10, 90, 60), fill(20, 10, 80, 60), fill(20, 10, 80, 60)
    objects = find((rider, 1), (horse, 2), (hidden, 3))
    values = judge(objects, annotate(objects), ("ground", "rider", "horse", "hidden"))
    assert values["class_ap50"] == {"rider": 1, "horse": 1, "hidden": 1}
    assert values["class_ap"] == pytest.approx(values["class_ap50"])
    assert values["objects"] == {"rider": 1, "horse": 1, "hidden": 1}


def make_batch(number, height, width):
    """Returns a batch of one picture with `number` large detections."""
    return {
        "boxes": np.tile(np.array([3, 3, 50, 40], np.float32), (1, number, 1)),
        "scores": np.linspace(0.9, 0.1, number, dtype=np.float32)[None],
        "labels": np.ones((1, number), np.int32),
        "masks": np.ones((1, number, 8, 8), np.float32),
        "geometry": np.array([[height, width, 48, 64]]),
    }


def test_judging_needs_little_memory_beside_the_masks():
    height, width = 300, 400
    ids = np.zeros((height, width), np.uint8)
    ids[20:200, 20:300] = 1
    tracemalloc.start()
    try:
        found = restore_row(make_batch(100, height, width), 0)
        judge_picture(found, {"label": ids, "classes": np.array([1])}, 2, 0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / (height * width) < 150  # bytes for a pixel, of which 100 hold the masks


def test_objects_below_a_threshold_are_not_restored():
    batch = make_batch(9, 60, 80)
    expected = keep_confident(restore_row(batch, 0), 0.5)
    assert 0 < len(expected.labels) < 9
    for one, other in zip(restore_row(batch, 0, 0.5), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    without = restore_row({**batch, "masks": None}, 0, 0.5)
    assert without.masks is None and len(without.labels) == len(expected.labels)


def test_a_figure_needs_the_masks_of_one_picture_at_a_time(tmp_path):
    masks, alive = [], []

    def restore():
        for _ in range(4):
            found = restore_row(make_batch(2, 60, 80), 0)
            masks.append(weakref.ref(found.masks))
            alive.append(sum(one() is not None for one in masks))
            yield Drawn(found.boxes, found.labels, found.scores, found.masks)

    images, truths = (
        [np.zeros((60, 80, 3), np.uint8)] * 4,
        [Drawn(np.zeros((0, 4)), np.zeros(0))] * 4,
    )
    path = tmp_path / "a.png"
    draw_detections(images, truths, restore(), "abcd", ("ground", "cell"), "title", "caption", path)
    assert path.exists() and len(alive) == 4 and max(alive) <= 2  # the last one and the next
