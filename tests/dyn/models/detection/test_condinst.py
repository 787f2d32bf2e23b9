"""CondInst: drawn masks against known numbers, places of objects, losses, results."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from detection_cases import TINY_CONDINST, FourStages, make_batch
from layer_cases import filled, init_shapes, shapes_of

from dyn.models import CondInst
from dyn.models.detection.condinst import (
    Predictions,
    assign_places,
    compute_dense_losses,
    count_numbers,
    draw_masks,
    list_places,
    place_boxes,
    read_places,
)

PICTURE = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
NET = CondInst(num_classes=4, backbone=FourStages, settings=TINY_CONDINST)


def test_masks_are_drawn_by_kernels_of_their_own():
    random = np.random.RandomState(3)
    features = np.float32(random.standard_normal((6, 8, 8)))
    theta = np.float32(0.3 * random.standard_normal((2, 169)))
    assert count_numbers(8, 8, 3) == 169
    draw = jax.jit(partial(draw_masks, width=8, layers=3))
    points, sizes = np.float32([[20, 12], [52, 36]]), np.float32([64, 128])
    large = np.asarray(draw(features[None], theta[None], points[None], sizes[None]))[0]
    assert large.shape == (2, 12, 16)
    np.testing.assert_allclose(large[0].sum(), -69.13872373, rtol=1e-4)
    # Every second number, from the second, is that before the size was doubled.
    logits = large[:, 1::2, 1::2]
    np.testing.assert_allclose(logits.sum((1, 2)), [-17.3122731, -8.87892386], rtol=1e-4)
    np.testing.assert_allclose(logits[:, 0, 0], [-0.10306571, 0.1252614], rtol=1e-4)
    np.testing.assert_allclose(logits[:, 5, 7], [-0.47317166, 0.40519635], rtol=1e-4)


def test_places_belong_to_the_smallest_object_of_their_level():
    places = list_places([(8, 8), (4, 4)], (8, 16), interest=8)
    assert places.points[:2].tolist() == [[4, 4], [12, 4]] and places.points[64].tolist() == [8, 8]
    assert set(places.interest) == {64, 128}
    boxes = np.float32([[0, 0, 56, 56], [22, 22, 42, 42], [0, 0, 64, 64], [0, 0, 0, 0]])
    exists = np.array([True, True, False, False])
    objects, positive = map(
        np.asarray,
        jax.jit(lambda b, e: assign_places(b, e, places, 1.5))(boxes[None], exists[None]),
    )
    for n, (point, stride) in enumerate(zip(places.points, places.strides, strict=True)):
        low, high = (0, 64) if stride == 8 else (64, np.inf)
        best = None
        for g in (1, 0):  # the smaller first
            edges = [*(point - boxes[g, :2]), *(boxes[g, 2:] - point)]
            centre = (boxes[g, :2] + boxes[g, 2:]) / 2
            near = np.abs(point - centre).max() < 1.5 * stride
            if best is None and near and min(edges) > 0 and low < max(edges) < high:
                best = g
        assert positive[0, n] == (best is not None)
        assert best is None or objects[0, n] == best
    # 3 x 3 places are near the middle of the large one, and 2 x 2 of them in the small one.
    assert np.bincount(objects[0][positive[0]]).tolist() == [5, 4]


def test_perfect_predictions_cost_little():
    places = list_places([(8, 8)], (8,), interest=8)
    boxes, labels = jnp.float32([[[10, 6, 40, 50]]]), jnp.array([[2]])
    objects, positive = assign_places(boxes, labels > 0, places, 1.5)
    points = jnp.float32(places.points)
    edges = jnp.concatenate([points - boxes[0, 0, :2], boxes[0, 0, 2:] - points], -1)
    sides = edges.reshape(-1, 2, 2)
    centre = jnp.sqrt(jnp.prod(jnp.min(sides, 1) / jnp.max(sides, 1), -1))
    right = jnp.where(positive[0, :, None] & (jnp.arange(3) == 1), 20.0, -20.0)
    logits = jnp.log(centre / (1 - centre))
    perfect = Predictions(right[None], edges[None], logits[None], jnp.zeros((1, 64, 0)))
    counts = jnp.ones_like(positive)
    arguments = (points, boxes, labels, objects, positive, counts, TINY_CONDINST)
    losses = jax.jit(lambda p: compute_dense_losses(p, *arguments))(perfect)
    assert losses["classifier"] < 1e-6 and abs(losses["boxes"]) < 1e-6
    entropy = -(centre * jnp.log(centre) + (1 - centre) * jnp.log(1 - centre))
    expected = np.mean(entropy[positive[0]])
    np.testing.assert_allclose(losses["centerness"], expected, rtol=1e-4)
    np.testing.assert_allclose(place_boxes(points, edges)[3], boxes[0, 0], atol=1e-5)


def test_ignored_places_teach_no_background():
    places = list_places([(8, 6), (1, 1)], (8, 96), interest=8)
    mask = np.zeros((1, 64, 48), bool)
    mask[0, 20, 12] = True
    mask[0, 48, 47] = True  # the nearest of the coarse level's place (48, 48)
    assert np.flatnonzero(read_places(jnp.asarray(mask), places)[0]).tolist() == [13, 48]
    x, targets = make_batch()
    targets |= {"labels": jnp.zeros_like(targets["labels"]), "ignored": jnp.ones((2, 64, 64), bool)}
    rngs = {"sampling": jax.random.key(0)}
    compute = jax.jit(partial(NET.apply, rngs=rngs))
    variables = filled(NET, PICTURE)
    assert compute(variables, x, targets)["classifier"] == 0
    targets["ignored"] &= jnp.arange(64) < 32
    assert compute(variables, x, targets)["classifier"] > 0


def test_parameters_have_fixed_names():
    shapes = shapes_of(init_shapes(NET, PICTURE)["params"])
    kernels = {p.removesuffix("/kernel") for p in shapes if p.endswith("/kernel")}
    assert {k for k in kernels if not k.startswith("backbone")} == {
        *(f"fpn/{part}{n}" for part in ("lateral", "output") for n in (1, 2, 3)),
        *("fpn/extra1", "fpn/extra2", "head/class_tower1_conv", "head/box_tower1_conv"),
        *(f"head/{part}" for part in ("classes", "distances", "centerness", "controller")),
        *(f"mask_branch/level{n}_conv" for n in (1, 2, 3)),
        *("mask_branch/conv1", "mask_branch/features"),
    }
    assert shapes["head/controller/kernel"][-1] == 169


def test_detections_have_a_fixed_size():
    x, _ = make_batch()
    found = jax.jit(NET.apply)(filled(NET, PICTURE), x, sizes=jnp.array([[64, 64], [40, 52]]))
    assert found.boxes.shape == (2, 5, 4) and found.masks.shape == (2, 5, 8, 8)
    assert np.any(found.labels > 0) and np.max(found.labels) <= 3
    assert (np.diff(found.scores) <= 0).all() and np.max(found.boxes[1]) <= 52
    assert np.min(found.masks) >= 0 and np.max(found.masks) <= 1


def test_gradients_reach_all_parameters_and_padding_changes_nothing():
    variables = filled(NET, PICTURE)
    (x, targets), (_, more) = make_batch(), make_batch(fill=2)

    def loss(params, targets):
        rngs = {"sampling": jax.random.key(0)}
        losses = NET.apply({**variables, "params": params}, x, targets, train=True, rngs=rngs)
        return sum(losses.values()), losses

    gradient, losses = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], targets)
    assert set(losses) == {"classifier", "boxes", "centerness", "masks"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, name
    _, other = jax.jit(loss)(variables["params"], more)
    for name, value in losses.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-4, err_msg=name)
