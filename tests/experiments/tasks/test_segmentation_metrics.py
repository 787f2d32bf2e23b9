import numpy as np
import pytest

from experiments.tasks.segmentation_metrics import compute_scores, count_pixels


def counted_by_hand(labels, predictions, num_classes):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for label, prediction in zip(np.ravel(labels), np.ravel(predictions), strict=True):
        if label != 255:
            matrix[label, prediction] += 1
    return matrix


@pytest.fixture
def batch(rng):
    labels = rng.integers(0, 4, (3, 5, 7))
    labels[rng.random(labels.shape) < 0.3] = 255
    return labels.astype(np.int32), rng.integers(0, 4, (3, 5, 7)).astype(np.int32)


def test_a_small_case_by_hand():
    truth = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [1, 0, 0, 2]], np.uint8)
    matrix = count_pixels(truth, prediction, 4)
    np.testing.assert_array_equal(matrix, [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = compute_scores(matrix)
    # Both: 2 right, 1 taken for the other, 1 of the other taken for it.
    np.testing.assert_array_equal(found["iou"], [2 / 4, 2 / 4, np.nan, np.nan])
    assert found["miou"] == 0.5
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["mean_accuracy"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_a_class_that_is_only_predicted_counts_with_zero():
    # Truth: 3 of class 0, 1 of class 1. Prediction: one pixel of class 0 is called 2.
    found = compute_scores(count_pixels([0, 0, 0, 1], [0, 0, 2, 1], 4))
    np.testing.assert_array_equal(found["iou"], [2 / 3, 1, 0, np.nan])
    assert found["miou"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["accuracy"] == 0.75
    # Class 2 is not in the truth: there was nothing of it to find.
    assert found["mean_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_class_that_is_never_found_counts_with_zero():
    found = compute_scores(count_pixels([0, 1], [0, 0], 2))
    np.testing.assert_array_equal(found["iou"], [0.5, 0])
    assert (found["miou"], found["mean_accuracy"]) == (0.25, 0.5)


def test_nothing_to_count_is_not_a_number():
    found = compute_scores(count_pixels(np.full((2, 2), 255), np.zeros((2, 2), int), 3))
    assert np.isnan([found["miou"], found["accuracy"], found["mean_accuracy"], *found["iou"]]).all()


def test_ignored_pixels_change_nothing_whatever_is_predicted_there(batch):
    labels, predictions = batch
    expected = counted_by_hand(labels, predictions, 4)
    for elsewhere in (0, 3, 200, -1):
        changed = np.where(labels == 255, elsewhere, predictions)
        np.testing.assert_array_equal(count_pixels(labels, changed, 4), expected)


@pytest.mark.parametrize(("labels", "predictions"), [([0, 3], [0, 0]), ([0], [-1])])
def test_classes_out_of_range_are_refused(labels, predictions):
    with pytest.raises(ValueError):
        count_pixels(labels, predictions, 3)


def test_255_is_never_a_class():
    labels = np.full((1, 2, 2), 255, np.int32)
    assert count_pixels(labels, labels, 256).sum() == 0
