"""Detectors learn eight made-up pictures by heart: nothing may be wrong anywhere for that."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dyn.layers.norms import GroupNorm
from dyn.models import (
    BasicBlock,
    CondInst,
    MaskRCNN,
    ResNet,
    make_small_condinst_settings,
    make_small_settings,
    make_targets,
    paint_detections,
)
from dyn.ops import box_iou

pytestmark = pytest.mark.long

STEPS = 400

SIDE, OBJECTS, CLASSES = 64, 5, 4
BACKBONE = partial(
    ResNet,
    stage_sizes=(1, 1, 1, 1),
    block=BasicBlock,
    num_classes=None,
    width=16,
    norm=partial(GroupNorm, num_groups=8),
)
NETS = {
    "mask_rcnn": MaskRCNN(
        CLASSES,
        BACKBONE,
        dataclasses.replace(make_small_settings(SIDE), detections=12),
    ),
    "condinst": CondInst(
        CLASSES,
        BACKBONE,
        dataclasses.replace(make_small_condinst_settings(), detections=12),
    ),
}


def make_pictures(number=8):
    """Pictures of discs, squares and triangles in any colour, on noise; maps of objects and their classes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    pictures = 0.3 * rng.standard_normal((number, SIDE, SIDE, 3))
    ids = np.zeros((number, SIDE, SIDE), np.int32)
    classes = np.zeros((number, OBJECTS), np.int32)
    for n in range(number):
        for k in range(rng.integers(2, OBJECTS)):
            kind, r = rng.integers(1, CLASSES), rng.uniform(8, 16)
            cy, cx = rng.uniform(r, SIDE - r, 2)
            shape = {
                1: (y - cy) ** 2 + (x - cx) ** 2 <= r**2,
                2: np.maximum(abs(y - cy), abs(x - cx)) <= 0.8 * r,
                3: (y - cy <= 0.7 * r) & (y - cy >= 2.2 * abs(x - cx) - r),
            }[int(kind)]
            if (ids[n][shape] > 0).any():
                continue
            ids[n][shape], classes[n, k] = k + 1, kind
            pictures[n][shape] = rng.uniform(0.5, 1.5, 3) * rng.choice([-1, 1], 3)
    return jnp.float32(pictures), jnp.asarray(ids), jnp.asarray(classes)


def measure_ap50(found, targets):
    """The mean over classes of the area under the precision envelope, at an IoU of 0.5."""
    precisions = []
    iou = np.asarray(jax.jit(box_iou)(found.boxes, targets["boxes"]))
    for label in range(1, CLASSES):
        wanted = np.asarray(targets["labels"] == label)
        ranked = sorted(
            ((-found.scores[n, k], n, k) for n, k in np.argwhere(found.labels == label)),
        )
        taken, right = np.zeros_like(wanted), []
        for _, n, k in ranked:
            fits = wanted[n] & ~taken[n] & (iou[n, k] >= 0.5)
            right.append(fits.any())
            if fits.any():
                taken[n, np.argmax(np.where(fits, iou[n, k], -1))] = True
        hits = np.cumsum(right)
        precision = hits / np.arange(1, len(hits) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        precisions.append(np.sum(envelope * np.array(right)) / max(wanted.sum(), 1))
    return np.mean(precisions)


def measure_painted_iou(found, ids, classes):
    wanted = np.where(
        ids > 0,
        np.take_along_axis(
            np.asarray(classes), np.maximum(ids.reshape(len(ids), -1) - 1, 0), 1
        ).reshape(ids.shape),
        0,
    )
    painted = np.asarray(paint_detections(found, ids.shape[1:], 0.5))
    both = [((painted == c) & (wanted == c)).sum() for c in range(CLASSES)]
    either = [((painted == c) | (wanted == c)).sum() for c in range(CLASSES)]
    return np.mean(np.array(both) / either)


@pytest.fixture(autouse=True)
def optimized():
    """Compiles slowly to run quickly, unlike in other tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("name", NETS)
def test_eight_pictures_are_learned_by_heart(name):
    net = NETS[name]
    x, ids, classes = make_pictures()
    targets = jax.jit(make_targets)(ids, classes)
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 20, STEPS), weight_decay=1e-4),
    )
    variables = jax.jit(net.init)(jax.random.key(0), x[:1, :64, :64])

    @jax.jit
    def step(params, state, key):
        def loss(params):
            rngs = {"sampling": key}
            losses = net.apply({"params": params}, x, targets, train=True, rngs=rngs)
            return sum(losses.values()), losses

        gradient, losses = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, losses

    with jax.numpy_dtype_promotion("standard"):
        params, state = variables["params"], optimizer.init(variables["params"])
        for n in range(STEPS):
            params, state, losses = step(params, state, jax.random.fold_in(jax.random.key(1), n))
            if n % 25 == 0:
                print(n, {key: round(float(value), 4) for key, value in losses.items()}, flush=True)
    found = jax.jit(net.apply)({"params": params}, x)
    ap50 = measure_ap50(jax.device_get(found), jax.device_get(targets))
    iou = measure_painted_iou(found, np.asarray(ids), classes)
    print(f"{name}: AP50 {ap50:.3f}, painted mIoU {iou:.3f}")
    assert ap50 > 0.9 and iou > 0.85
