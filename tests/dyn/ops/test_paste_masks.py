"""Masks are pasted as torchvision pastes them, or to fractions of pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn.ops import paste_masks

Y, X = np.mgrid[:28, :28]
MASK = np.exp(-((Y - 13.5) ** 2 / 80 + (X - 9) ** 2 / 50))
# Sum, and number of pixels of at least one half, in 96 x 128 pixels.
TORCHVISION = {
    (10.3, 5.7, 52.9, 40.2): (372.69883736, 270),
    (-6.5, -3.2, 20.1, 15.8): (89.07310472, 76),
    (100, 70, 140, 110): (294.70147272, 248),
}


def test_rounded_masks_are_those_of_torchvision():
    boxes = np.float32(list(TORCHVISION))
    masks = np.broadcast_to(np.float32(MASK), (len(boxes), 28, 28))
    paste = jax.jit(partial(paste_masks, size=(96, 128), rounded=True))
    pasted = np.asarray(paste(masks, boxes))
    assert pasted.shape == (3, 96, 128)
    for mask, (total, pixels) in zip(pasted, TORCHVISION.values(), strict=True):
        np.testing.assert_allclose(mask.sum(), total, rtol=1e-5)
        assert (mask >= 0.5).sum() == pixels


def paste_by_loop(mask, box, size):
    padded = np.pad(mask, 1)
    result = np.zeros(size)
    for y, x in np.ndindex(*size):
        at_y = (y + 0.5 - box[1]) / (box[3] - box[1]) * len(mask) + 0.5
        at_x = (x + 0.5 - box[0]) / (box[2] - box[0]) * len(mask) + 0.5
        i, j = int(np.floor(at_y)), int(np.floor(at_x))
        if not (0 <= i <= len(mask) and 0 <= j <= len(mask)):
            continue
        down, right = at_y - i, at_x - j
        square = padded[i : i + 2, j : j + 2]
        result[y, x] = np.array([1 - down, down]) @ square @ np.array([1 - right, right])
    return result


@pytest.mark.parametrize("box", TORCHVISION)
def test_pasted_masks_equal_the_loop(box):
    pasted = jax.jit(paste_masks, static_argnums=2)(
        jnp.float32(MASK)[None, None], jnp.float32(box)[None, None], (96, 128)
    )
    np.testing.assert_allclose(pasted[0, 0], paste_by_loop(MASK, box, (96, 128)), atol=1e-5)


def test_a_box_without_area_gets_nothing():
    boxes = np.float32([[0, 0, 0, 0], [3, 3, 3, 3]])
    pasted = jax.jit(partial(paste_masks, size=(8, 8)))(np.ones((2, 4, 4), np.float32), boxes)
    assert not np.any(pasted)
