"""Boxes against numbers of torchvision and plain loops; gradients; empty boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dyn.ops import (
    box_area,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    find_covered_share,
    find_mask_boxes,
    generalized_box_iou,
)


def random_boxes(rng, *shape):
    low = rng.uniform(0, 20, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(1, 20, (*shape, 2))], axis=-1)


def iou_by_hand(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_iou_by_hand(rng):
    a, b = random_boxes(rng, 2, 5), random_boxes(rng, 2, 7)
    expected = [[[iou_by_hand(p, q) for q in b[n]] for p in a[n]] for n in range(2)]
    result = jax.jit(box_iou)(jnp.float32(a), jnp.float32(b))
    assert np.max(expected) > 0.3 and np.min(expected) == 0
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    areas = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    np.testing.assert_allclose(jax.jit(box_area)(jnp.float32(a)), areas, rtol=1e-5)


@pytest.mark.parametrize(
    "function", [lambda a, b: box_iou(a, b)[0, 0], lambda a, b: generalized_box_iou(a, b)[0]]
)
def test_boxes_without_area_have_no_overlap_and_finite_gradients(function):
    empty = jnp.zeros((1, 4))
    value, gradient = jax.jit(jax.value_and_grad(function))(empty, empty)
    assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("anchor", "box", "weights", "code", "decoded"),
    [
        (
            [0, 0, 16, 16],
            [2, -1, 12, 30],
            (1, 1, 1, 1),
            [-0.0625, 0.40625, -0.4700036292, 0.6613984822],
            None,
        ),
        (
            [0, 0, 16, 16],
            [2, -1, 12, 30],
            (10, 10, 5, 5),
            [-0.625, 4.0625, -2.3500181462, 3.3069924112],
            None,
        ),
        (  # larger than what is decoded
            [5, 5, 6, 9],
            [0, 0, 200, 300],
            (1, 1, 1, 1),
            [94.5, 35.75, 5.2983173665, 4.3174881135],
            [68.75, 25, 131.25, 275],
        ),
    ],
)
def test_codes_are_those_of_torchvision(anchor, box, weights, code, decoded):
    anchor, box, weights = np.float32(anchor), np.float32(box), np.float32(weights)
    encoded = jax.jit(encode_boxes)(box, anchor, weights)
    np.testing.assert_allclose(encoded, code, rtol=1e-5)
    result = jax.jit(decode_boxes)(encoded, anchor, weights)
    np.testing.assert_allclose(result, box if decoded is None else decoded, rtol=1e-5, atol=1e-4)


def test_sizes_are_clamped_from_above_alone():
    boxes = jax.jit(decode_boxes)(np.float32([0.5, -0.25, 9, -3]), np.float32([0, 0, 16, 8]))
    np.testing.assert_allclose(boxes, [-484, 1.80085173, 516, 2.19914827], rtol=1e-5)


def test_bfloat16_codes_are_decoded_in_float32():
    anchor = np.float32([300, 300, 301, 331])
    codes = np.zeros(4, jnp.bfloat16)
    assert jax.jit(decode_boxes)(codes, anchor).tolist() == anchor.tolist()


@pytest.mark.parametrize(
    "function", [encode_boxes, decode_boxes, generalized_box_iou, box_iou], ids=lambda f: f.__name__
)
def test_gradients(rng, function):
    with jax.enable_x64(True):
        a, b = (jnp.asarray(random_boxes(rng, 3)) for _ in range(2))
        check_grads(jax.jit(function), (a / 10, b), order=1, modes=("rev",))


def test_generalized_iou():
    a = np.float32([[0, 0, 16, 16], [0, 0, 1, 1]])
    b = np.float32([[2, -1, 12, 30], [9, 0, 10, 1]])  # the second ones do not touch
    values = jax.jit(generalized_box_iou)(a, b)
    np.testing.assert_allclose(values, [1 - 0.787362943, -0.8], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int32])
def test_areas_of_large_boxes_in_any_dtype(dtype):
    # 600 x 600 is infinite in float16.
    boxes = jnp.asarray([[0, 0, 600, 600], [0, 0, 300, 600]], dtype)
    areas = np.multiply.reduce(np.float32(boxes)[:, 2:], axis=-1)
    np.testing.assert_array_equal(box_area(boxes), areas)
    np.testing.assert_array_equal(box_iou(boxes, jnp.float32(boxes)), [[1, 0.5], [0.5, 1]])
    np.testing.assert_array_equal(generalized_box_iou(boxes, boxes[::-1]), [0.5, 0.5])


def test_boxes_are_clipped_to_the_picture_of_each():
    boxes = np.tile(np.float32([[-3, 2, 30, 40], [50, 50, 60, 60]]), (2, 1, 1))
    clipped = jax.jit(clip_boxes)(boxes, np.array([[20, 10], [45, 25]]))
    expected = [
        [[0, 2, 10, 20], [10, 20, 10, 20]],
        [[0, 2, 25, 40], [25, 45, 25, 45]],
    ]
    assert clipped.tolist() == expected
    assert jax.jit(clip_boxes)(boxes[0], (20, 10)).tolist() == expected[0]


def test_boxes_of_masks(rng):
    masks = rng.uniform(size=(3, 9, 11)) > 0.95
    masks[2] = False
    boxes = jax.jit(find_mask_boxes)(masks)
    for mask, box in zip(masks[:2], boxes, strict=False):
        y, x = np.nonzero(mask)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert boxes[2].tolist() == [0, 0, 0, 0]


def test_covered_shares_are_those_of_a_loop(rng):
    masks = rng.uniform(size=(2, 9, 11)) > 0.6
    corners = rng.uniform(-4, 14, (2, 30, 2, 2))
    boxes = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
    boxes[:, 0], boxes[:, 1] = [-9, -9, -1, -1], [3, 4, 3, 8]  # outside, and without area
    shares = jax.jit(find_covered_share)(boxes, masks)
    for mask, row, found in zip(masks, boxes, shares, strict=True):
        for box, share in zip(row, found, strict=True):
            x1, y1, x2, y2 = np.clip(np.round(box), 0, [11, 9, 11, 9]).astype(int)
            part = mask[y1:y2, x1:x2]
            assert share == pytest.approx(part.mean() if part.size else 0, abs=1e-6)
