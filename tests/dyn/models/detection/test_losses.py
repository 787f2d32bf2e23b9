"""Losses and mask targets have torchvision's numbers; samples that do not exist count for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from detection_cases import BOXES, MASKS

from dyn.models.detection.losses import (
    compute_box_losses,
    compute_mask_loss,
    compute_proposal_losses,
    crop_masks,
    dice_loss,
    focal_loss,
    smooth_l1,
)
from dyn.ops import find_mask_boxes, paste_masks


def test_smooth_l1():
    values = jax.jit(smooth_l1)(np.float32([0.05, 0.2, -1, 1 / 9]))
    expected = [0.01125, 0.1444444444, 0.9444444444, 0.0555555556]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_focal_loss():
    values = jax.jit(focal_loss)(np.float32([-3, -0.5, 0, 2]), np.float32([0, 1, 0, 1]))
    expected = [8.19625e-5, 0.0943529002, 0.1299650964, 0.0004508907]
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_dice_loss(rng):
    p, t = rng.uniform(size=(2, 4, 5)), rng.uniform(size=(2, 4, 5)) > 0.5
    expected = [
        1 - 2 * (a * b).sum() / ((a**2).sum() + b.sum() + 1e-5) for a, b in zip(p, t, strict=True)
    ]
    np.testing.assert_allclose(
        jax.jit(dice_loss)(np.float32(p), np.float32(t)), expected, rtol=1e-5
    )


def test_mask_targets_are_those_of_torchvision():
    boxes = np.float32([[[12, 16, 69, 85], [70, 20, 118, 60], [5.5, 3.25, 60.75, 70.5]]])
    crop = jax.jit(crop_masks, static_argnums=3)
    targets = np.asarray(crop(MASKS[None], np.array([[0, 1, 0]]), boxes, 28))[0]
    sums = [594.95539257, 657.75255102, 493.88736592]
    np.testing.assert_allclose(targets.sum((1, 2)), sums, rtol=1e-5)
    squares = (targets[:2] ** 2).sum((1, 2)) / 784
    np.testing.assert_allclose(squares, [0.73862465, 0.73697955], rtol=1e-5)
    np.testing.assert_allclose(targets[1, 0, :5], [0.632653, 1, 1, 0.841837, 0.586735], atol=1e-5)
    assert boxes[0, :2].tolist() == BOXES.tolist()


def test_proposal_losses_by_hand(rng):
    logits, codes, wanted = (rng.standard_normal((2, 9, *n)) for n in ((), (4,), (4,)))
    positive = rng.uniform(size=(2, 9)) > 0.6
    negative = ~positive & (rng.uniform(size=(2, 9)) > 0.5)
    found = jax.jit(compute_proposal_losses)(
        *map(np.float32, (logits, codes, wanted)), positive, negative
    )
    probability = 1 / (1 + np.exp(-logits))
    cross_entropy = -np.where(positive, np.log(probability), np.log(1 - probability))
    count = (positive | negative).sum()
    d = np.abs(codes - wanted)[positive]
    boxes = np.where(d < 1 / 9, 4.5 * d**2, d - 1 / 18).sum() / count
    expected = (cross_entropy[positive | negative].mean(), boxes)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_box_losses_by_hand(rng):
    logits, codes, wanted = (rng.standard_normal((2, 6, *n)) for n in ((3,), (3, 4), (4,)))
    labels, exists = rng.integers(0, 3, (2, 6)), rng.uniform(size=(2, 6)) > 0.3
    found = jax.jit(compute_box_losses)(
        *map(np.float32, (logits, codes)), labels, np.float32(wanted), exists
    )
    classifier = boxes = 0
    for n in zip(*np.nonzero(exists), strict=True):
        classifier += np.log(np.exp(logits[n]).sum()) - logits[n][labels[n]]
        if labels[n]:
            d = np.abs(codes[n][labels[n]] - wanted[n])
            boxes += np.where(d < 1 / 9, 4.5 * d**2, d - 1 / 18).sum()
    expected = np.array([classifier, boxes]) / exists.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_samples_losses_and_gradients_are_zero():
    none = jnp.zeros((1, 3), bool)
    labels = jnp.zeros((1, 3), jnp.int32)

    def loss(arrays):
        logits, codes, masks = arrays
        parts = (
            *compute_proposal_losses(logits[..., 0], codes[:, :, 0], codes[:, :, 0], none, none),
            *compute_box_losses(logits, codes, labels, codes[:, :, 0], none),
            compute_mask_loss(masks, masks[..., 0], labels, none),
        )
        return sum(parts)

    arrays = (jnp.ones((1, 3, 2)), jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 4, 4, 2)))
    value, gradient = jax.jit(jax.value_and_grad(loss))(arrays)
    assert value == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_aligned_masks_are_pasted_where_they_were():
    small = MASKS[None, :, ::3, ::3]
    boxes = jax.jit(find_mask_boxes)(small)

    @jax.jit
    def paste(boxes):
        masks = crop_masks(small, np.array([[0, 1]]), boxes, 28, aligned=True)
        return paste_masks(masks, boxes, small.shape[2:]) >= 0.5

    wrong = np.asarray(paste(boxes)) != small
    assert wrong.sum() <= 0.01 * small.sum()
