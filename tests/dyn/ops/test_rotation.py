"""Rotated kernels are exact by quarter turns and bilinear between them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import random_input
from scipy import ndimage

from dyn.ops.rotation import rotate_kernels


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rotations", [4, 8, 12])
def test_a_quarter_of_the_bank_further_is_a_quarter_turn_exactly(size, rotations):
    kernels = random_input(2, size, size, 3, 4)
    bank = jax.jit(rotate_kernels, static_argnums=1)(kernels, rotations)
    assert bank.shape == (rotations, *kernels.shape)
    np.testing.assert_array_equal(bank[0], kernels)
    turned = jnp.rot90(bank, axes=(2, 3))
    np.testing.assert_array_equal(jnp.roll(bank, -rotations // 4, axis=0), turned)


@pytest.mark.parametrize("rotations", [1, 3, 5, 8])
def test_bank_is_bilinear_interpolation(rotations):
    """Against scipy, which rotates the same way round, with zeros outside."""
    with jax.enable_x64(True):
        kernel = random_input(5, 5, 1, 1, dtype=np.float64)
        bank = np.asarray(rotate_kernels(kernel, rotations))[..., 0, 0]
    # A rim of zeros, as scipy does not interpolate towards what is outside its array.
    rimmed = np.pad(np.asarray(kernel)[..., 0, 0], 3)
    for r, got in enumerate(bank):
        angle = math.tau * r / rotations
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        offset = 5 - turn @ [5, 5]
        want = ndimage.affine_transform(rimmed, turn, offset, order=1, mode="constant")
        np.testing.assert_allclose(got, want[3:-3, 3:-3], rtol=0, atol=1e-12)


def test_bank_needs_square_kernels():
    with pytest.raises(ValueError, match="must be square"):
        rotate_kernels(jnp.ones((3, 2, 1, 1)), 4)
    with pytest.raises(ValueError, match="rotations=0"):
        rotate_kernels(jnp.ones((3, 3, 1, 1)), 0)
