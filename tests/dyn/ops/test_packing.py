"""Packed positions: a convolution of them is the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn.ops.geometry import resolve_geometry
from dyn.ops.packing import plan_packing


@pytest.mark.parametrize(
    ("width", "size", "padding", "features", "number"),
    [(6, 3, "SAME", (40, 64), 2), (5, 3, "SAME", (20, 42), 3), (7, 5, "VALID", (8, 32), 4)],
)
def test_a_packed_convolution_is_the_plain_one(width, size, padding, features, number):
    geometry = resolve_geometry((2, width), (1, size), 1, padding)
    packing = plan_packing(geometry, *features)
    assert packing.number == number
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 2, width, features[0])), jnp.float32)
    w = jnp.asarray(rng.normal(size=(1, size, *features)), jnp.float32)
    packed = packing.pack(x)
    left, right = packing.geometry.padding[1]
    rows = left + packed.shape[2] + max(right, packing.offset > 0)
    shifted = jnp.zeros((1, 2, rows, packed.shape[3]))
    for lanes, new_lanes, ahead in packing.list_lanes(packed.shape[3]):
        first = left + ahead
        shifted = shifted.at[:, :, first : first + packed.shape[2], new_lanes].set(
            packed[..., lanes]
        )
    taps = [packing.assemble(lambda j: w[0, j], j) for j in range(packing.geometry.size[1])]
    wide = packing.geometry.out[1]
    with jax.default_matmul_precision("highest"):
        y = sum(shifted[:, :, j : j + wide] @ tap for j, tap in enumerate(taps))
        want = geometry.convolve(x, w, "highest")
    np.testing.assert_allclose(packing.unpack(y, geometry.out[1]), want, atol=1e-4)


@pytest.mark.parametrize("strides", [1, 2])
def test_wide_features_and_strides_leave_positions_alone(strides):
    geometry = resolve_geometry((4, 6), (3, 3), strides)
    assert plan_packing(geometry, 64, 128 // strides).number == 1


def test_products_of_packed_taps_are_split():
    """The product of a tap is the sum of the blocks that it is in."""
    packing = plan_packing(resolve_geometry((1, 4), (1, 3)), 64, 64)
    products = jnp.arange(4.0).repeat(64)[:, None] * 10 + jnp.arange(2.0).repeat(64)
    # Rows 0 and 2 are the first positions of both taps; columns are those of the outputs.
    assert [float(tap[0, 0]) for tap in packing.split(products)] == [0 + 11, 10 + 21, 20 + 31]
