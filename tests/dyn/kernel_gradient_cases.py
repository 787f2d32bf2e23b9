"""Cases of the fused kernel gradient, its arguments and its plain form in float64."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dyn.ops.geometry import Geometry, resolve_geometry


class Case(NamedTuple):
    """One convolution: `features` is (I, O)."""

    spatial: tuple[int, ...]
    size: tuple[int, ...]
    strides: int = 1
    padding: str = "SAME"
    kernel_dilation: int = 1
    features: tuple[int, int] = (8, 16)
    num_kernels: int = 2
    batch: int = 2
    scaled: bool = False


CASES = {
    "3x3": Case((5, 6), (3, 3), num_kernels=4, batch=4),
    "3x3, one kernel": Case((4, 7), (3, 3), num_kernels=1, batch=8),
    "3x3, strides 2": Case((5, 6), (3, 3), strides=2),
    "3x3, strides 2, even": Case((8, 8), (3, 3), strides=2, num_kernels=3, batch=1),
    "3x3, weighted features": Case((5, 6), (3, 3), num_kernels=3, batch=4, scaled=True),
    "blocks of weighted features": Case(
        (4, 4), (3, 3), strides=2, features=(256, 256), batch=8, scaled=True
    ),
    "1x1": Case((3, 5), (1, 1)),
    "1x1, strides 2": Case((6, 5), (1, 1), strides=2),
    "5x3, 16 kernels": Case((6, 5), (5, 3), num_kernels=16),
    "3x3, valid, dilated": Case((8, 9), (3, 3), padding="VALID", kernel_dilation=2),
    "7x7, strides 2": Case((9, 11), (7, 7), strides=2, num_kernels=1),
    "1-D": Case((11,), (3,), num_kernels=3),
    "1-D, causal, strides 2": Case((12,), (5,), strides=2, padding="CAUSAL"),
    "blocks of features": Case((4, 4), (3, 3), features=(256, 256), num_kernels=2),
    "features between tiles of lanes": Case(
        (4, 4), (3, 3), features=(192, 40), num_kernels=2, scaled=True
    ),
    "3x3, 64 features": Case((4, 6), (3, 3), features=(64, 64)),
    "3x3, three positions in the lanes": Case((3, 5), (3, 3), features=(20, 42), scaled=True),
}


def make_geometry(case: Case) -> Geometry:
    """Returns the geometry of a case, its padding in numbers."""
    return resolve_geometry(
        case.spatial,
        case.size,
        case.strides,
        case.padding,
        kernel_dilation=case.kernel_dilation,
    )


def make_arguments(case: Case, dtype, seed: int = 0):
    """Returns x, dy, kernels, coefficients and scales, random; the first two in `dtype`."""
    geometry, rng = make_geometry(case), np.random.default_rng(seed)
    features, filters = case.features
    shapes = (
        (case.batch, *case.spatial, features),
        (case.batch, *geometry.out, filters),
        (case.num_kernels, *case.size, features, filters),
        (case.batch, geometry.taps, case.num_kernels),
    )
    dtypes = (dtype, dtype, jnp.float32, jnp.float32)
    arrays = [
        jnp.asarray(rng.normal(size=shape), of) for shape, of in zip(shapes, dtypes, strict=True)
    ]
    scales = None
    if case.scaled:  # by powers of two, which round no input
        exponents = [rng.integers(-2, 3, (case.batch, n)) for n in case.features]
        scales = tuple(jnp.asarray(2.0**n, jnp.float32) for n in exponents)
    return *arrays, scales


def compute_plainly(x, dy, kernels, coefficients, scales, geometry: Geometry):
    """Returns the gradients by a loop over samples, taps and kernels in float64."""
    x, dy, kernels, coefficients = (
        np.asarray(a, np.float64) for a in (x, dy, kernels, coefficients)
    )
    channels, filters = np.ones((len(x), x.shape[-1])), np.ones((len(x), dy.shape[-1]))
    if scales is not None:
        channels, filters = (np.asarray(scale, np.float64) for scale in scales)
    x = x * channels.reshape(len(x), *(1,) * (x.ndim - 2), -1)
    d_filters = np.zeros_like(filters)
    padded = np.pad(x, [(0, 0), *geometry.padding, (0, 0)])
    d_kernels, d_coefficients = np.zeros_like(kernels), np.zeros_like(coefficients)
    taps = list(itertools.product(*map(range, geometry.size)))
    for b, (t, tap) in itertools.product(range(len(x)), enumerate(taps)):
        starts = [a * d for a, d in zip(tap, geometry.kernel_dilation, strict=True)]
        slices = tuple(
            slice(start, start + (n - 1) * stride + 1, stride)
            for start, n, stride in zip(starts, geometry.out, geometry.strides, strict=True)
        )
        shifted = padded[(b, *slices)].reshape(geometry.positions, -1)
        g = shifted.T @ dy[b].reshape(geometry.positions, -1)
        for k in range(len(kernels)):
            d_kernels[(k, *tap)] += coefficients[b, t, k] * g * filters[b]
            result = np.sum(g * kernels[(k, *tap)], 0)
            d_coefficients[b, t, k] = result @ filters[b]
            d_filters[b] += coefficients[b, t, k] * result
    return d_kernels, d_coefficients, None if scales is None else d_filters


def assert_gradients_agree(got, want):
    """Compares the gradients, relative to their largest numbers; the kernel accumulates in float32."""
    for name, result, expected in zip(
        ("kernels", "coefficients", "filters"), got, want, strict=True
    ):
        if expected is None:
            assert result is None
            continue
        assert result.shape == expected.shape and result.dtype == jnp.float32, name
        scale = np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6 * scale, err_msg=name)
