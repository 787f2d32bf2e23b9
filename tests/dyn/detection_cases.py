"""The two objects and the picture on which torchvision's detectors and ours are compared, and small ones."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from dyn.models import BasicBlock, CondInstSettings, RCNNSettings, ResNet

_Y, _X = np.mgrid[:96, :128]
MASKS = np.stack(
    [
        ((_X - 40) / 28) ** 2 + ((_Y - 50) / 34) ** 2 <= 1,
        (_X >= 70) & (_X < 118) & (_Y >= 20) & (_Y < 60) & ((_X + _Y) % 7 != 0),
    ]
)
BOXES = np.float32([[12, 16, 69, 85], [70, 20, 118, 60]])
LABELS = np.int32([3, 7])

FourStages = partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock, num_classes=None, width=4)
TINY = RCNNSettings(
    anchor_sizes=(8, 16, 32, 64, 128),
    features=8,
    anchor_samples=10_000,
    candidates=24,
    proposals=12,
    training_candidates=24,
    training_proposals=12,
    box_samples=64,
    box_features=8,
    canonical_size=28,
    score=0.0,
    detection_candidates=40,
    detections=6,
    mask_layers=1,
    mask_features=8,
    mask_bins=4,
    box_bins=4,
)
TINY_CONDINST = CondInstSettings(
    features=8,
    tower_layers=1,
    groups=4,
    interest=4.0,
    mask_branch=8,
    mask_branch_layers=1,
    training_places=16,
    score=0.0,
    candidates=24,
    detections=5,
    mask_size=8,
)


def make_batch(fill=0):
    """Two pictures of 64 x 64 with two objects and one, and `fill` rows without an object."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 64, 64, 3)).astype(np.float32)
    masks = np.zeros((2, 2 + fill, 64, 64), bool)
    masks[0, 0, 10:40, 8:30] = masks[0, 1, 30:60, 35:62] = masks[1, 0, 20:50, 20:44] = True
    boxes = np.zeros((2, 2 + fill, 4), np.float32)
    boxes[0, 0], boxes[0, 1], boxes[1, 0] = [8, 10, 30, 40], [35, 30, 62, 60], [20, 20, 44, 50]
    labels = np.zeros((2, 2 + fill), np.int32)
    labels[0, :2], labels[1, 0] = [1, 3], 2
    targets = {"boxes": boxes, "labels": labels, "masks": masks}
    return jnp.asarray(x), {name: jnp.asarray(value) for name, value in targets.items()}
