"""Targets of maps, selection against a plain loop, painting, scaling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn.models import Detections, make_targets, paint_detections, scale_detections
from dyn.models.detection.detections import select_detections


def test_targets_follow_from_a_map():
    ids = np.zeros((2, 12, 10), np.uint8)
    ids[0, 2:5, 3:9], ids[0, 6, 1], ids[1, :, 9] = 1, 2, 3
    ids[0, 5], ids[1, 0, 9] = 255, 255
    targets = jax.jit(make_targets)(ids, np.array([[4, 9, 5], [0, 0, 2]]))
    assert targets["labels"].tolist() == [
        [4, 9, 0],
        [0, 0, 2],
    ]  # the third has no pixels in the first
    assert targets["boxes"][0].tolist() == [[3, 2, 9, 5], [1, 6, 2, 7], [0, 0, 0, 0]]
    assert targets["boxes"][1, 2].tolist() == [9, 1, 10, 12]
    assert targets["masks"].sum((2, 3)).tolist() == [[18, 1, 0], [0, 0, 11]]
    assert np.argwhere(targets["ignored"][1]).tolist() == [[0, 9]]
    assert targets["ignored"][0].sum() == 10 and targets["ignored"][0, 5].all()


def test_the_filling_of_a_picture_is_background():
    ids = np.full((2, 6, 8), 255, np.uint8)
    sizes = np.array([[6, 8], [2, 3]])
    ignored = jax.jit(make_targets)(ids, np.array([[1], [1]]), sizes)["ignored"]
    assert ignored[0].all() and ignored[1, :2, :3].all() and ignored[1].sum() == 6


def select_by_loop(scores, codes, proposals, size, threshold, iou, number):
    candidates = []
    for p, label in np.ndindex(scores.shape):
        x1, y1, x2, y2 = proposals[p]
        dx, dy, dw, dh = codes[p, label] / np.array([10, 10, 5, 5])
        width, height = (x2 - x1) * np.exp(dw), (y2 - y1) * np.exp(dh)
        x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
        box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        box = np.clip(box, 0, [size[1], size[0]] * 2)
        large = min(box[2] - box[0], box[3] - box[1]) >= 1
        if label and scores[p, label] > threshold and large:
            candidates.append((scores[p, label], label, box))
    kept = []
    for score, label, box in sorted(candidates, key=lambda one: -one[0]):
        for _, other, better in kept:
            sides = np.minimum(box[2:], better[2:]) - np.maximum(box[:2], better[:2])
            inner = np.prod(np.maximum(sides, 0))
            union = np.prod(box[2:] - box[:2]) + np.prod(better[2:] - better[:2]) - inner
            if label == other and inner / union > iou:
                break
        else:
            kept.append((score, label, box))
    return kept[:number]


def test_selected_detections_equal_the_loop(rng):
    scores = rng.uniform(size=(2, 14, 3))
    codes = rng.standard_normal((2, 14, 3, 4))
    corner = rng.uniform(0, 30, (2, 14, 2))
    proposals = np.concatenate([corner, corner + rng.uniform(2, 30, (2, 14, 2))], -1)
    sizes = np.array([[40, 50], [30, 24]])
    select = partial(
        select_detections,
        code_weights=(10, 10, 5, 5),
        smallest=1.0,
        threshold=0.3,
        candidates=28,
        iou=0.4,
        number=9,
    )
    found = jax.jit(select)(*map(np.float32, (scores, codes, proposals)), sizes)
    for n in range(2):
        kept = select_by_loop(scores[n], codes[n], proposals[n], sizes[n], 0.3, 0.4, 9)
        assert len(kept) > 5
        for k, (score, label, box) in enumerate(kept):
            np.testing.assert_allclose(found.scores[n, k], score, rtol=1e-5)
            np.testing.assert_allclose(found.boxes[n, k], box, atol=1e-3)
            assert found.labels[n, k] == label
        assert not np.any(found.labels[n, len(kept) :])


def test_better_detections_are_painted_over_others():
    boxes = jnp.float32([[[0, 0, 4, 4], [2, 2, 6, 6], [5, 0, 8, 3], [0, 0, 0, 0]]])
    scores, labels = jnp.float32([[0.9, 0.8, 0.3, 0]]), jnp.array([[1, 2, 3, 0]])
    masks = jnp.ones((1, 4, 7, 7)).at[0, 0, :, 4:].set(0.1)
    paint = jax.jit(paint_detections, static_argnums=1)
    found = Detections(boxes, scores, labels)
    expected = np.zeros((6, 8), int)
    expected[2:6, 2:6] = 2
    expected[:4, :4] = 1
    assert paint(found, (6, 8)).tolist() == [expected.tolist()]
    expected[:4, 2:4] = 0  # the mask ends there
    expected[2:6, 2:6] = 2
    assert paint(found._replace(masks=masks), (6, 8)).tolist() == [expected.tolist()]
    assert 3 in np.asarray(paint(found, (6, 8), 0.2))


def test_boxes_are_scaled_to_other_pictures():
    found = Detections(jnp.float32([[[1, 2, 3, 4]]]), jnp.ones((1, 1)), jnp.ones((1, 1), jnp.int32))
    assert scale_detections(found, np.array([[2.0, 0.5]])).boxes.tolist() == [[[0.5, 4, 1.5, 8]]]
