"""Matches are torchvision's; samples have the right numbers; rows that only fill an array change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn.models.detection.matching import gather_chosen, match_boxes, sample_kinds
from dyn.ops import box_iou, make_anchors

IOU = [[0.7, 0.3, 0.29, 0.5, 0, 0.2, 0.69], [0.1, 0.3, 0.31, 0.5, 0, 0.2, 0.4]]


def match(iou, exists, *thresholds, restore=False):
    run = jax.jit(match_boxes, static_argnames=("positive", "negative", "restore"))
    found = run(np.float32(iou), np.array(exists), *thresholds, restore=restore)
    # Numbers of torchvision's matcher: the object, -1 for negative, -2 for ignored.
    return np.select([found.kinds == 1, found.kinds == 0], [found.objects, -1], -2).tolist()


@pytest.mark.parametrize("padding", [0, 2])
def test_matches_are_those_of_torchvision(padding):
    iou = IOU + [[0.0] * 7] * padding
    exists = [True] * 2 + [False] * padding
    assert match(iou, exists, 0.7, 0.3, restore=True) == [0, -2, -2, 0, -1, -1, -2]
    assert match(iou, exists, 0.5, 0.5) == [0, -1, -1, 0, -1, -1, 0]


def test_without_objects_all_is_background():
    assert match(np.zeros((2, 7)), [False] * 2, 0.7, 0.3, restore=True) == [-1] * 7
    # An object that touches no box makes none positive.
    assert match(np.zeros((2, 7)), [True] * 2, 0.7, 0.3, restore=True) == [-1] * 7


def test_anchors_of_two_objects():
    sizes = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    anchors = np.concatenate(make_anchors((96, 128), sizes, (32, 64, 128, 256, 512)))
    boxes = np.float32([[12, 16, 69, 85], [70, 20, 118, 60], [0, 0, 0, 0]])
    iou = jax.jit(box_iou)(boxes, anchors)
    matches = np.array(match(iou, [True, True, False], 0.7, 0.3, restore=True))
    positive = np.flatnonzero(matches >= 0)
    assert len(positive) == 16 and (matches == -1).sum() == 2705 and (matches == -2).sum() == 351
    assert positive[:5].tolist() == [931, 934, 937, 940, 1027]
    assert positive[-4:].tolist() == [2605, 2608, 2611, 2656]


def test_samples_fill_up_with_negative_ones():
    kinds = np.array([[1] * 6 + [0] * 20 + [-1] * 4, [0] * 3 + [1] * 2 + [-1] * 25])

    @jax.jit
    def sample(key):
        positive, negative = sample_kinds(key, kinds, 8, 0.5)
        return positive, negative, *gather_chosen(positive, negative, 8)

    seen = np.zeros(30, bool)
    for seed in range(8):
        positive, negative, index, exists = map(np.asarray, sample(jax.random.key(seed)))
        assert positive.sum(1).tolist() == [4, 2] and negative.sum(1).tolist() == [4, 3]
        assert (kinds[positive] == 1).all() and (kinds[negative] == 0).all()
        assert exists.sum(1).tolist() == [8, 5]
        for n, first in enumerate((4, 2)):
            assert set(index[n, :first]) == set(np.flatnonzero(positive[n]))
            assert set(index[n][exists[n]][first:]) == set(np.flatnonzero(negative[n]))
        seen |= positive[0]
    assert seen[:6].all()  # each has its turn


def test_everything_is_taken_if_the_sample_is_large():
    kinds = np.array([[1] * 3 + [0] * 4 + [-1] * 2])
    positive, negative = jax.jit(lambda key: sample_kinds(key, kinds, 100, 0.5))(jax.random.key(0))
    assert positive.tolist() == (kinds == 1).tolist()
    assert negative.tolist() == (kinds == 0).tolist()
    assert not np.any(positive & negative) and jnp.sum(positive) == 3
