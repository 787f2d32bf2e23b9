import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from experiments.data import coco_annotations
from experiments.data.instances import VOID

SIZE = (6, 8)
SQUARE = [[1, 1, 5, 1, 5, 4, 1, 4]]  # columns 1 to 4, rows 1 to 3


def make_square(top, left, bottom, right):
    found = np.zeros(SIZE, bool)
    found[top:bottom, left:right] = True
    return found


def list_runs(mask):
    """The oracle: run lengths down the columns, the first of pixels outside."""
    counts, value, run = [], False, 0
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(run)
            value, run = pixel, 0
        run += 1
    return [*counts, run]


def check(**fields):
    raw = {"category_id": 90, "segmentation": SQUARE} | fields
    return coco_annotations.check_annotation(raw, {90: 1, 7: 2}, *SIZE)


def make(mask, category=1, **fields):
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"category_id": category, "segmentation": code, "iscrowd": 0, **fields}


def test_polygons_and_run_lengths_give_their_masks(rng):
    expected = make_square(1, 1, 4, 5)
    runs = list_runs(expected)
    compressed = coco_mask.encode(np.asfortranarray(expected, np.uint8))["counts"].decode()
    for segmentation in (
        SQUARE,
        [[1, 1, 3, 1, 3, 4, 1, 4], [3, 1, 5, 1, 5, 4, 3, 4.0]],
        [*SQUARE, [6, 1, 7, 2], []],
        {"size": [*SIZE], "counts": runs},
        {"size": [*SIZE], "counts": compressed},
    ):
        code = coco_annotations.encode_segmentation(segmentation, *SIZE)
        np.testing.assert_array_equal(coco_annotations.decode_mask(code), expected)


def test_polygons_cover_what_pillow_draws(rng):
    for _ in range(5):
        centre, angles = rng.uniform(20, 40, 2), np.sort(rng.uniform(0, 2 * np.pi, 7))
        points = centre + 18 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        canvas = Image.new("1", (60, 60))
        ImageDraw.Draw(canvas).polygon([tuple(point - 0.5) for point in points], fill=1)
        code = coco_annotations.encode_segmentation([points.ravel().tolist()], 60, 60)
        differences = coco_annotations.decode_mask(code) ^ np.asarray(canvas)
        assert differences.sum() < 0.5 * coco_mask.area(code) ** 0.5 * 7  # at edges alone


def test_compressed_run_lengths_are_read(rng):
    for _ in range(30):
        shape = rng.integers(1, 60, 2)
        mask = rng.random(shape) < rng.choice([0, 0.01, 0.5, 1])
        text = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        assert coco_annotations.read_counts(text) == list_runs(mask)


def test_annotations_are_completed():
    found = check()
    assert found.pop("segmentation")["size"] == [*SIZE]
    assert found == {"category_id": 1, "bbox": [1, 1, 4, 3], "area": 12, "iscrowd": 0}
    given = {"bbox": [1.5, 1, 3, 3], "area": 10.5, "iscrowd": 1, "category_id": 7, "score": 1}
    found = check(**given)
    assert found.pop("segmentation")["size"] == [*SIZE]
    assert found == {"category_id": 2, "bbox": [1.5, 1, 3, 3], "area": 10.5, "iscrowd": 1}
    assert check(bbox=[1, 1, -4, 3], area="12")["bbox"] == [1, 1, 4, 3]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"category_id": 3}, "no category 3"),
        ({"category_id": [90]}, r"no category \[90\]"),
        ({"segmentation": []}, "a box alone"),
        ({"segmentation": None}, "a box alone"),
        ({"segmentation": "polygons"}, "neither polygons nor"),
        ({"segmentation": [1, 1, 5, 1, 5, 4]}, "not a list of numbers"),
        ({"segmentation": [[1, 1, 5, 1]]}, "4 numbers"),
        ({"segmentation": [[1, 1, 5, 1], [1, 1, 2, 2]]}, "4 numbers"),
        ({"segmentation": [[1, 1, 5, 1, 5, 4, 1]]}, "7 numbers"),
        ({"segmentation": [*SQUARE, [1, 1, 5, None, 5, 4]]}, "not a list of numbers"),
        ({"segmentation": [[1, 1, 5, float("nan"), 5, 4]]}, "not a list of numbers"),
        ({"segmentation": [[1, 1, 5, 1e30, 5, 4]]}, "far outside"),
        ({"segmentation": [[0, 0, 8, 6] * 1000]}, "longer than its picture"),
        ({"segmentation": [[1, 1, 1, 1, 1, 1]]}, "no pixel"),
        ({"segmentation": {"size": [*SIZE], "counts": [48]}}, "no pixel"),
        (
            {"segmentation": {"size": [8, 6], "counts": [40, 8]}},
            r"for the size \[8, 6\], not \[6, 8\]",
        ),
        ({"segmentation": {"counts": [40, 8]}}, "for the size None"),
        ({"segmentation": {"size": [*SIZE], "counts": [40, 7]}}, "cover 47 of 48"),
        ({"segmentation": {"size": [*SIZE], "counts": [50, -2]}}, "whole numbers"),
        ({"segmentation": {"size": [*SIZE], "counts": [40.5, 7.5]}}, "whole numbers"),
        ({"segmentation": {"size": [*SIZE]}}, "whole numbers"),
        ({"segmentation": {"size": [*SIZE], "counts": "04"}}, "cover 4 of 48"),
        ({"segmentation": {"size": [*SIZE], "counts": "zz~"}}, "not COCO's"),
        ({"segmentation": {"size": [*SIZE], "counts": "o" * 20}}, "not COCO's"),
        ({"segmentation": {"size": [*SIZE], "counts": "0o"}}, "end early"),
    ],
)
def test_broken_annotations_are_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        check(**fields)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([1, 1, 4, 3], make_square(1, 1, 4, 5)),
        ([1.5, 1.9, 3, 2], make_square(1, 1, 4, 5)),
        ([-9, 4, 1000, 1e200], make_square(4, 0, 6, 8)),
    ],
)
def test_boxes_have_the_pixels_that_they_touch(box, expected):
    code = coco_annotations.encode_segmentation(coco_annotations.outline_box(box, *SIZE), *SIZE)
    np.testing.assert_array_equal(coco_annotations.decode_mask(code), expected)


@pytest.mark.parametrize("box", [None, [1, 1, 4], [1, 1, 4, -3], [8, 1, 4, 3], [1, 1, 0, 3]])
def test_boxes_without_a_pixel_are_refused(box):
    with pytest.raises(ValueError, match="box"):
        coco_annotations.outline_box(box, *SIZE)


def test_the_smaller_object_lies_on_top():
    large, small, crowd = (
        make_square(0, 0, 5, 6),
        make_square(1, 1, 3, 3),
        make_square(4, 4, 6, 8),
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[crowd] = VOID
    expected[large] = 2
    expected[small] = 1
    annotations = [make(small, 5), make(crowd, 3, iscrowd=1), make(large, 9)]
    ids, classes = coco_annotations.paint_annotations(annotations, *SIZE)
    np.testing.assert_array_equal(ids, expected)
    assert classes.tolist() == [5, 9]


def test_covered_objects_are_left_out_and_numbers_have_no_gap():
    parts = [make_square(0, 0, 2, 4), make_square(0, 0, 2, 2), make_square(0, 2, 2, 4)]
    ids, classes = coco_annotations.paint_annotations(
        [make(part, number) for number, part in enumerate(parts, 1)], *SIZE
    )
    assert classes.tolist() == [2, 3] and ids[0].tolist() == [1, 1, 2, 2, 0, 0, 0, 0]
    ids, classes = coco_annotations.paint_annotations([], *SIZE)
    assert not ids.any() and classes.shape == (0,) and classes.dtype == np.int32


def test_a_map_has_room_for_254_objects():
    masks = np.zeros((300, *SIZE, 10), bool).reshape(300, -1)
    masks[np.arange(300), np.arange(300)] = True
    masks[7, :9] = False
    masks[7, 400:440] = True
    shape = (SIZE[0], SIZE[1] * 10)
    annotations = [make(mask.reshape(shape), 1 + n) for n, mask in enumerate(masks)]
    ids, classes = coco_annotations.paint_annotations(annotations, *shape)
    assert len(classes) == 254 and 8 in classes and (ids == VOID).sum() == 46
