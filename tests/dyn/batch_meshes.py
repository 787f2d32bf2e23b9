"""Meshes that divide a batch, known while a function is traced."""

import jax
from jax.sharding import AxisType

EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto
MESHES = {
    "explicit": ((4,), (EXPLICIT,)),
    "auto": ((4,), (AUTO,)),
    "explicit, data x model": ((2, 2), (EXPLICIT, EXPLICIT)),
    "mixed, data x model": ((2, 2), (EXPLICIT, AUTO)),
    "auto, data x 1": ((4, 1), (AUTO, AUTO)),
}


def make_mesh(shape, types):
    """Makes a mesh of the axes `data` and, with two numbers, `model`."""
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=types)
