"""Inverse Fourier transforms by matrix products against numpy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import random_input

from dyn.ops.fourier import invert_by_products


@pytest.mark.parametrize(
    "shape", [(1, 1), (6, 4), (5, 7), (12, 9), (7, 12), (60, 54), (13, 2), (2, 3)]
)
def test_inverse_transforms_are_numpys(shape):
    rows, columns = shape
    with jax.enable_x64(True):
        spectra = np.asarray(random_input(2, 3, rows, columns // 2 + 1, dtype=np.float64))
        want = np.fft.irfft2(spectra[0] + 1j * spectra[1], s=shape, norm="ortho")
        np.testing.assert_allclose(
            invert_by_products(*map(jnp.asarray, spectra), columns), want, rtol=0, atol=1e-13
        )


def test_products_in_bfloat16_add_up_in_float32():
    spectra = random_input(2, 24, 13)
    got = invert_by_products(*spectra, 24, jnp.dtype(jnp.bfloat16))
    assert got.dtype == jnp.float32
    want = invert_by_products(*spectra, 24)
    assert 0 < np.abs(got - want).max() < 0.05
