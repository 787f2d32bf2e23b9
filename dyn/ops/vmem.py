"""The memory inside a TPU's core, VMEM: its size, and the tiles that arrays in it are made of."""

import math
from typing import Any

import jax
import jax.numpy as jnp

LANES = 128
SUBLANES = 8  # of a register of 32-bit numbers
VMEM_SHARE = 0.95  # of all VMEM, for a kernel
# VMEM of the TPU with the least, v4, for compilation where the device is not known.
SMALLEST_VMEM = 16 * 2**20


def find_vmem_size() -> int:
    """Returns the bytes of VMEM of the TPU that is compiled for, or of the smallest if it is unknown."""
    from jax.experimental.pallas import tpu as pltpu

    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:  # no TPU: the interpreter, or compilation for a topology outside of its mesh
        return SMALLEST_VMEM


def make_parameters(*semantics: Any) -> Any:
    """Returns the compiler's parameters for a kernel, with what each axis of its grid is."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.CompilerParams(
        dimension_semantics=semantics, vmem_limit_bytes=int(VMEM_SHARE * find_vmem_size())
    )


def count_vmem_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Returns the bytes of an array in VMEM, whose last two axes are filled up to whole tiles."""
    *rest, rows, lanes = shape
    sublanes = 32 // itemsize
    return math.prod(rest) * round_up(rows, sublanes) * round_up(lanes, LANES) * itemsize


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple


def fill_axis(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Fills an axis up with zeros to whole tiles."""
    missing = round_up(x.shape[axis], multiple) - x.shape[axis]
    ends = [(0, 0)] * x.ndim
    ends[axis] = (0, missing)
    return jnp.pad(x, ends) if missing else x


def keep_layout(array: jax.Array) -> jax.Array:
    """Asks for samples in the lanes where features would leave more of them empty.

    The compiler would extend the kernel's layout, with features in the lanes, to all operations around it.
    """
    from jax.experimental.layout import Layout, with_layout_constraint

    batch, features = array.shape[0], array.shape[-1]
    if batch * round_up(features, LANES) <= features * round_up(batch, LANES):
        return array
    return with_layout_constraint(array, Layout((*range(1, array.ndim), 0)))
