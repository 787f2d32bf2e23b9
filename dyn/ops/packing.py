"""Positions of a row beside each other in the lanes of a TPU, where their features fill only a part of them.

    x[.., w, i] = packed[.., w // p, (w % p) I + i]

A convolution of packed positions has p times the features and about 1/p of the positions and of the kernel's
width. Its taps consist of the taps W_j: for p = 2 and a width of 3 they are [[W_0, 0], [W_1, W_0]] and
[[W_2, W_1], [0, W_2]], so three quarters of a product count.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dyn.ops.geometry import Geometry
from dyn.ops.vmem import LANES, fill_axis

# A packed tap is put together from so many times so many blocks.
MOST_PACKED = 4


@dataclasses.dataclass(frozen=True)
class Packing:
    """Numbers of a convolution whose positions are packed along the width.

    Attributes:
        geometry: of packed positions, with two spatial axes.
        width: taps of a row of the kernel.
        number: positions beside each other, p.
        offset: place among p at which the first input lies.
    """

    geometry: Geometry
    width: int
    number: int = 1
    offset: int = 0

    def find_tap(self, packed_tap: int, place: int, out_place: int) -> int | None:
        """Returns the tap between a place of the inputs and one of the outputs, None if there is none."""
        tap = self.number * packed_tap + place - out_place
        return tap if 0 <= tap < self.width else None

    def assemble(self, get_tap: Callable[[int], jax.Array], packed_tap: int) -> jax.Array:
        """Puts a tap of the packed kernel together from those of a row, `[I, O]`."""
        if self.number == 1:
            return get_tap(packed_tap)
        rows = []
        for place in range(self.number):
            found = [self.find_tap(packed_tap, place, n) for n in range(self.number)]
            blocks = [None if tap is None else get_tap(tap).astype(jnp.float32) for tap in found]
            zeros = jnp.zeros_like(get_tap(0), jnp.float32)
            rows.append(jnp.concatenate([zeros if b is None else b for b in blocks], axis=1))
        return jnp.concatenate(rows)

    def split(self, products: jax.Array) -> list[jax.Array]:
        """Returns the product `[I, O]` of each tap of a row from those of packed taps, `[.. * p I, p O]`."""
        packed_taps = self.geometry.size[1]
        height, width = (
            products.shape[0] // (packed_taps * self.number),
            products.shape[1] // self.number,
        )
        taps: dict[int, jax.Array] = {}
        for at in itertools.product(range(packed_taps), range(self.number), range(self.number)):
            tap = self.find_tap(*at)
            if tap is not None:
                row, column = at[0] * self.number + at[1], at[2]
                rows = slice(row * height, (row + 1) * height)
                block = products[rows, column * width : (column + 1) * width]
                taps[tap] = taps[tap] + block if tap in taps else block
        return [taps[tap] for tap in range(self.width)]

    def list_lanes(self, features: int) -> list[tuple[slice, slice, int]]:
        """Returns parts of packed inputs: the lanes they are in, those they move to, and rows further.

        Args:
            features: numbers of all packed positions, p I.
        """
        moved = features // self.number * self.offset
        parts = [(slice(0, features - moved), slice(moved, features), 0)]
        return [*parts, (slice(features - moved, features), slice(0, moved), 1)] if moved else parts

    def pack(self, array: jax.Array) -> jax.Array:
        """Packs an array `[B, H, W, I]`, whose width is filled up with zeros."""
        array = fill_axis(array, 2, self.number)
        batch, height, width, features = array.shape
        return array.reshape(batch, height, width // self.number, self.number * features)

    def unpack(self, array: jax.Array, width: int) -> jax.Array:
        """Does the reverse of `pack` for arrays that were as wide as told."""
        batch, height, wide, features = array.shape
        array = array.reshape(batch, height, wide * self.number, features // self.number)
        return array[:, :, :width]


def plan_packing(geometry: Geometry, features: int, columns: int) -> Packing:
    """Plans how many positions lie beside each other; one if features fill the lanes, or along strides.

    Args:
        geometry: with two spatial axes.
        features, columns: number of input and of output features.
    """
    steps = (geometry.strides[1], geometry.input_dilation[1], geometry.kernel_dilation[1])
    number = min(MOST_PACKED, LANES // max(features, columns))
    if number <= 1 or max(steps) > 1:
        return Packing(geometry, geometry.size[1])
    (height, width), (vertical, (left, _)) = geometry.spatial, geometry.padding
    width, out = -(-width // number), -(-geometry.out[1] // number)
    size = (geometry.size[1] + number - 2) // number + 1
    right = out + size - 1 - left // number - width
    packed = dataclasses.replace(
        geometry,
        spatial=(height, width),
        size=(geometry.size[0], size),
        padding=(vertical, (left // number, right)),
    )
    return Packing(packed, geometry.size[1], number, left % number)
