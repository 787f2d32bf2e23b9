"""Non-maximum suppression is exactly the greedy loop, with its ties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn.ops import non_max_suppression

BOXES = [
    *([0, 0, 10, 10], [0, 0, 10, 5], [1, 1, 11, 11], [20, 20, 30, 30], [20, 20, 30, 30]),
    *([21, 21, 31, 31], [0, 0, 10, 10], [40, 40, 40, 50], [40, 40, 40, 50], [0, 5, 10, 10]),
]
SCORES = [0.9, 0.8, 0.9, 0.7, 0.7, 0.7, 0.95, 0.6, 0.6, 0.8]
CLASSES = [1, 1, 1, 1, 1, 2, 2, 1, 1, 1]


def suppress(boxes, scores, threshold, size=None, **fields):
    fields = {name: np.asarray(value) for name, value in fields.items()}
    size = len(scores) if size is None else size
    run = jax.jit(non_max_suppression, static_argnums=3)
    found = run(np.float32(boxes), np.float32(scores), np.float32(threshold), size, **fields)
    indices, valid = map(np.asarray, found)
    return indices[valid].tolist()


def suppress_by_loop(boxes, scores, threshold, groups, valid):
    """Walks down the scores in float32, as torchvision does."""
    boxes, kept = np.float32(boxes), []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if not valid[i]:
            continue
        for j in kept:
            low = np.maximum(boxes[i, :2], boxes[j, :2])
            high = np.minimum(boxes[i, 2:], boxes[j, 2:])
            inner = np.prod(np.maximum(high - low, 0))
            areas = np.prod(boxes[[i, j], 2:] - boxes[[i, j], :2], axis=-1)
            union = areas.sum() - inner
            if groups[i] == groups[j] and union > 0 and inner / union > np.float32(threshold):
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [(0.5, [6, 1, 9, 3, 7, 8]), (0.3, [6, 3, 7, 8]), (0.7, [6, 2, 1, 9, 3, 5, 7, 8])],
)
def test_ties_and_empty_boxes_are_treated_as_in_torchvision(threshold, kept):
    assert suppress(BOXES, SCORES, threshold) == kept  # an IoU of exactly 0.5 stays


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.5, [6, 0, 1, 9, 3, 5, 7, 8]), (0.3, [6, 0, 3, 5, 7, 8])]
)
def test_classes_do_not_suppress_each_other(threshold, kept):
    assert suppress(BOXES, SCORES, threshold, groups=CLASSES) == kept


def test_random_boxes_of_torchvision():
    random = np.random.RandomState(7)
    corner, side = random.uniform(0, 60, (12, 2)), random.uniform(10, 40, (12, 2))
    boxes, scores = np.concatenate([corner, corner + side], 1), random.uniform(0, 1, 12)
    assert suppress(boxes, scores, 0.3) == [1, 9, 11, 10, 3, 2]
    assert suppress(boxes, scores, 0.5) == [1, 9, 11, 4, 10, 3, 2, 6, 0, 7]


def test_a_suppressed_box_suppresses_nothing():
    chain = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]  # neighbours at IoU 0.43
    assert suppress(chain, [0.9, 0.8, 0.7], 0.3) == [0, 2]


def test_random_cases_equal_the_loop(rng):
    """Many boxes at once, in groups, with ties and gaps: under jit, with leading axes."""
    cases, number = 40, 60
    corner = rng.uniform(0, 50, (cases, number, 2)).round(rng.integers(0, 3))
    boxes = np.concatenate([corner, corner + rng.integers(0, 30, (cases, number, 2))], -1)
    scores = rng.integers(0, 12, (cases, number)) / 4.0
    groups = rng.integers(0, 3, (cases, number))
    valid = rng.uniform(size=(cases, number)) > 0.2
    found = jax.jit(partial(non_max_suppression, threshold=0.4, size=number))(
        jnp.float32(boxes).reshape(8, 5, number, 4),
        jnp.float32(scores).reshape(8, 5, number),
        groups=jnp.asarray(groups).reshape(8, 5, number),
        valid=jnp.asarray(valid).reshape(8, 5, number),
    )
    indices, exist = (np.asarray(a).reshape(cases, number) for a in found)
    for n in range(cases):
        expected = suppress_by_loop(boxes[n], scores[n], 0.4, groups[n], valid[n])
        assert indices[n][exist[n]].tolist() == expected
        assert (indices[n][~exist[n]] == 0).all()


def test_the_best_are_returned():
    assert suppress(BOXES, SCORES, 0.5, size=2) == [6, 1]
    run = jax.jit(non_max_suppression, static_argnums=3)
    indices, valid = run(jnp.float32(BOXES[:2]), jnp.float32([1, 2]), 0.9, 4)
    assert indices.tolist() == [1, 0, 0, 0] and valid.tolist() == [True, True, False, False]


def test_boxes_that_do_not_exist_count_for_nothing():
    valid = np.array(SCORES) < 0.9
    expected = suppress_by_loop(BOXES, SCORES, 0.3, [0] * 10, valid)
    assert suppress(BOXES, SCORES, 0.3, valid=valid) == expected
    assert suppress(BOXES, SCORES, 0.3, valid=np.zeros(10, bool)) == []
    lowest = np.full(10, -np.inf)
    expected = suppress_by_loop(BOXES, lowest, 0.3, [0] * 10, valid)
    assert suppress(BOXES, lowest, 0.3, valid=valid) == expected


def test_it_has_no_gradient_and_stops_none():
    def loss(boxes):
        indices, valid = non_max_suppression(boxes, boxes[:, 0], 0.5, 3)
        return jnp.sum(jnp.where(valid[:, None], boxes[indices], 0))

    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.float32(BOXES)))
    assert gradient.sum() == 12 and set(np.unique(gradient)) == {0, 1}


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2,\)"):
        non_max_suppression(jnp.zeros((3, 4)), jnp.zeros(2), 0.5, 3)
    with pytest.raises(ValueError, match=r"groups must have the shape \(3,\)"):
        non_max_suppression(jnp.zeros((3, 4)), jnp.zeros(3), 0.5, 3, groups=jnp.zeros((3, 1)))


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_large_boxes_in_any_dtype(dtype):
    boxes = np.array([[0, 0, 600, 600], [1, 1, 601, 601], [0, 0, 300, 300]], dtype)
    valid = np.array([1, 1, 1], np.int32)
    found = non_max_suppression(boxes, np.float32([0.9, 0.8, 0.7]), 0.5, 3, valid=valid)
    assert [a.tolist() for a in found] == [[0, 2, 0], [True, True, False]]
