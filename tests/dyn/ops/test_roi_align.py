"""ROIAlign against torchvision's numbers and a loop over points; both methods; gradients."""

import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dyn.ops import choose_levels, multilevel_roi_align, platforms, roi_align
from dyn.ops.roi_align import Grid, choose_method

y, x, c = np.mgrid[:9, :11, :2]
FEATURES = ((7 * y + 13 * x + 29 * c) % 31) / 31 - 0.5
# For each box: not aligned and aligned, two points along each axis of a bin; channel 0, and the sum of 1.
TORCHVISION = {
    (4, 6, 30, 26): (
        ([-0.0086945565, 0.0475680444, 0.0128528226, -0.1301033266], -0.0649571573),
        ([0.0925529234, 0.0316280242, -0.0401965726, -0.0483870968], -0.0584047379),
    ),
    (-8, -5, 12, 50): (
        ([-0.0030241935, -0.0387789819, 0.0395665323, -0.0861580141], 0.0428112399),
        ([-0.0577116935, 0.0025201613, 0.0113407258, -0.0921748992], 0.220766129),
    ),
    (10.2, 10.4, 10.9, 10.8): (
        ([0.3177419355, 0.2274193548, 0.1506451613, 0.0953225806], 0.5330645161),
        ([-0.1421370968, -0.1054435484, -0.1308467742, -0.0941532258], -0.7306451613),
    ),
    (20, 20, 20, 20): (
        ([-0.1129032258, 0.0967741935, 0, 0.2096774194], -0.064516129),
        ([-0.0967741935] * 4, 0.3548387097),
    ),
    (60, 50, 90, 80): (([0] * 4, 0), ([0] * 4, 0)),
}
# Box, aligned; as many points as a bin has features.
ADAPTIVE = {
    ((4, 6, 30, 26), False): (
        [0.0056283602, 0.0221774194, 0.0126358087, -0.0715095766],
        -0.041953685,
    ),
    ((-8, -5, 12, 50), True): (
        [-0.0295150318, -0.0063706934, 0.0131528418, -0.0283846738],
        -0.0198458416,
    ),
    ((20, 20, 20, 20), True): ([0] * 4, 0),
}


def align_by_loops(features, box, bins, scale, ratio, aligned):
    """The mean over points of one box, in float64; features are `[h, w, C]`."""
    h, w, channels = features.shape
    offset = 0.5 if aligned else 0
    x1, y1, x2, y2 = (edge * scale - offset for edge in np.float64(box))
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = max(height, 1), max(width, 1)
    p, q = bins
    rows = ratio if ratio > 0 else math.ceil(height / p)
    columns = ratio if ratio > 0 else math.ceil(width / q)
    result = np.zeros((p, q, channels))
    for i, j in np.ndindex(p, q):
        for m, n in np.ndindex(max(rows, 0), max(columns, 0)):
            at_y = y1 + i * height / p + (m + 0.5) * height / p / rows
            at_x = x1 + j * width / q + (n + 0.5) * width / q / columns
            if not (-1 <= at_y <= h and -1 <= at_x <= w):
                continue
            at_y, at_x = min(max(at_y, 0), h - 1), min(max(at_x, 0), w - 1)
            top, left = int(at_y), int(at_x)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            down, along = at_y - top, at_x - left
            upper = (1 - along) * features[top, left] + along * features[top, right]
            lower = (1 - along) * features[bottom, left] + along * features[bottom, right]
            result[i, j] += ((1 - down) * upper + down * lower) / (rows * columns)
    return result


@pytest.mark.parametrize("method", ["matmul", "gather"])
@pytest.mark.parametrize("aligned", [False, True])
def test_numbers_are_those_of_torchvision(method, aligned):
    boxes = jnp.float32(list(TORCHVISION))[None]
    align = partial(roi_align, size=2, scale=0.25, aligned=aligned, method=method)
    result = jax.jit(align)(jnp.float32(FEATURES)[None], boxes)[0]
    for y, numbers in zip(np.asarray(result), TORCHVISION.values(), strict=True):
        first, second = numbers[aligned]
        np.testing.assert_allclose(y[..., 0].ravel(), first, atol=1e-6)
        np.testing.assert_allclose(y[..., 1].sum(), second, atol=1e-6)


@pytest.mark.parametrize(("box", "aligned"), ADAPTIVE)
def test_as_many_points_as_features(box, aligned):
    align = partial(roi_align, size=2, scale=0.25, sampling_ratio=0, aligned=aligned)
    y = np.asarray(jax.jit(align)(np.float32(FEATURES)[None], np.float32([[box]])))[0, 0]
    first, second = ADAPTIVE[box, aligned]
    np.testing.assert_allclose(y[..., 0].ravel(), first, atol=1e-6)
    np.testing.assert_allclose(y[..., 1].sum(), second, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "aligned", "method"),
    [(3, False, "matmul"), (3, True, "gather"), (0, True, "matmul")],
)
def test_random_boxes_equal_the_loops(rng, ratio, aligned, method):
    """Two pictures, boxes beyond all edges, and bins that are not square."""
    features = rng.standard_normal((2, 6, 9, 3))
    corner = rng.uniform(-30, 60, (2, 12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 90, (2, 12, 2))], axis=-1)
    options = {"scale": 0.2, "sampling_ratio": ratio, "aligned": aligned}
    result = jax.jit(partial(roi_align, size=(3, 2), method=method, **options))(
        jnp.float32(features), jnp.float32(boxes)
    )
    assert result.shape == (2, 12, 3, 2, 3)
    for n, t in np.ndindex(2, 12):
        expected = align_by_loops(features[n], boxes[n, t], (3, 2), 0.2, ratio, aligned)
        np.testing.assert_allclose(result[n, t], expected, atol=2e-5, err_msg=str(boxes[n, t]))


LEVELS = [
    ([10, 20, 60, 50], 0, [-0.11214718, -0.04489037, 0.02954889, 0.03723538]),
    ([10, 20, 122, 132], 1, [-0.18649194, -0.00100806, 0.08165323, 0.0483871]),
    ([0, 0, 224, 224], 2, [-0.05846774, -0.12298387, -0.05594758, 0.06703629]),
    ([200.5, 100.25, 203, 101], 0, [-0.03427419, -0.32459677, 0.07862903, -0.21169355]),
    ([-100, -100, 400, 350], 3, [-0.01543599, 0.00392003, -0.04466494, -0.0117217]),
]


@pytest.mark.parametrize("method", ["matmul", "gather"])
def test_boxes_are_aligned_on_their_levels(method):
    pyramid = []
    for level in range(4):
        y, x = np.mgrid[: 64 >> level, : 96 >> level]
        pyramid.append(np.float32(((7 * y + 13 * x + 29 * level) % 31) / 31 - 0.5)[None, ..., None])
    boxes = np.float32([[box for box, _, _ in LEVELS]])

    def align(pyramid, boxes):
        levels = choose_levels(boxes, 4)
        scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        y = multilevel_roi_align(pyramid, boxes, 2, scales=scales, levels=levels, method=method)
        return levels, y

    levels, result = map(np.asarray, jax.jit(align)(pyramid, boxes))
    assert levels[0].tolist() == [level for _, level, _ in LEVELS]
    for y, (_, _, expected) in zip(result[0], LEVELS, strict=True):
        np.testing.assert_allclose(y.ravel(), expected, atol=2e-6)


def test_levels_at_the_borders():
    sides = {
        (111.9999, 112): 1,
        (447, 448): 2,
        (448, 448): 3,
        (50, 250): 0,
        (56, 224): 1,
        (0, 5): 0,
    }
    boxes = jnp.float32([(0, 0, *size) for size in sides])
    assert jax.jit(choose_levels, static_argnums=1)(boxes, 4).tolist() == list(sides.values())


@pytest.mark.parametrize("method", ["matmul", "gather"])
def test_gradient_reaches_features_alone(rng, method):
    features = jnp.float32(rng.standard_normal((1, 5, 6, 2)))
    boxes = jnp.float32([[[-3, 2, 14, 9], [8, 8, 30, 30]]])
    align = jax.jit(partial(roi_align, size=2, scale=0.3, method=method))
    check_grads(lambda f: align(f, boxes), (features,), order=1, modes=("rev",), rtol=1e-2)
    assert not np.any(jax.jit(jax.grad(lambda b: align(features, b).sum()))(boxes))


def test_many_boxes_are_aligned_in_chunks(rng, monkeypatch):
    features = jnp.float32(rng.standard_normal((2, 5, 6, 3)))
    corner = rng.uniform(0, 20, (2, 7, 2))
    boxes = jnp.float32(np.concatenate([corner, corner + 9], -1))

    def sum_of_squares(features):
        return jnp.sum(roi_align(features, boxes, 2, scale=0.3, method="matmul") ** 2)

    whole = jax.jit(jax.value_and_grad(sum_of_squares))(features)
    module = sys.modules[roi_align.__module__]
    monkeypatch.setattr(module, "CHUNK", 2 * 2 * 6 * 3)  # two boxes
    chunked = jax.jit(jax.value_and_grad(lambda f: sum_of_squares(f)))(features)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), chunked, whole)


def test_bfloat16_features_are_aligned_in_float32(rng):
    features = rng.integers(-4, 5, (1, 300, 4, 1)).astype(np.float32)
    box = jnp.float32([[[0.25, 261.25, 2.5, 263.75]]])  # bfloat16 has no 261.25
    expected = align_by_loops(features[0], box[0, 0], (2, 2), 1, 2, False)
    for method in ("matmul", "gather"):
        align = jax.jit(partial(roi_align, size=2, method=method))
        y = align(jnp.asarray(features, jnp.bfloat16), box)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(y[0, 0]), expected, rtol=0.02, atol=0.02)


def test_the_method_follows_platform_and_size():
    grid = Grid((7, 7), 2, False)
    assert choose_method([(8, 8)], grid) == "matmul"
    assert choose_method([(200, 304)], grid) == "gather"
    assert choose_method([(200, 304)], grid._replace(sampling_ratio=0)) == "matmul"
    with platforms.plan_for_platform("tpu"):
        assert choose_method([(200, 304)], grid) == "matmul"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes": jnp.zeros((1, 4))}, r"\[B, T, 4\]"),
        ({"features": jnp.zeros((2, 4, 4, 1))}, r"\(2, 4, 4, 1\)"),
        ({"method": "loop"}, "'matmul' or 'gather'"),
        ({"method": "gather", "sampling_ratio": 0}, "write method='matmul'"),
    ],
)
def test_errors_name_what_is_right(fields, message):
    arguments = {"features": jnp.zeros((1, 4, 4, 1)), "boxes": jnp.zeros((1, 2, 4)), "size": 2}
    with pytest.raises(ValueError, match=message):
        roi_align(**{**arguments, **fields})


@pytest.mark.parametrize("shape", [(0, 4, 4, 1), (1, 4, 4, 0)])
def test_nothing_to_gather(shape):
    y = roi_align(jnp.zeros(shape), jnp.zeros((shape[0], 2, 4)), np.int64(2), method="gather")
    assert y.shape == (shape[0], 2, 2, 2, shape[-1])
