"""The gradient of the fused convolution for its kernels, in Pallas's interpreter, against a loop."""

import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu
from kernel_gradient_cases import (
    CASES,
    assert_gradients_agree,
    compute_plainly,
    make_arguments,
    make_geometry,
)

from dyn.ops.fused_tpu_gradient import choose_blocks, compute_kernel_gradients, fits_vmem
from dyn.ops.geometry import resolve_geometry


def test_kernel_gradients_are_those_of_the_loop():
    """With several kernels and strides, in bfloat16; float32 and all other cases are in the matrix."""
    case = CASES["3x3, strides 2"]
    arguments, geometry = make_arguments(case, jnp.bfloat16), make_geometry(case)
    with pltpu.force_tpu_interpret_mode():
        got = compute_kernel_gradients(*arguments, geometry)
    assert_gradients_agree(got, compute_plainly(*arguments, geometry))


@pytest.mark.parametrize(
    ("width", "features", "kernels", "fits"),
    [(56, 64, 8, True), (7, 512, 1, True), (7, 512, 16, True), (600, 64, 4, False)],
)
def test_blocks_are_chosen_for_the_memory_of_a_core(width, features, kernels, fits):
    geometry = resolve_geometry((width, width), (3, 3))
    shape = (kernels, 3, 3, features, features)
    assert fits_vmem(geometry, shape, batch=128, itemsize=2) == fits


def test_a_batch_is_cut_into_equal_parts():
    geometry = resolve_geometry((7, 7), (3, 3))
    samples = [
        choose_blocks(geometry, (4, 3, 3, 256, 256), batch, 2).samples for batch in (12, 6, 7)
    ]
    assert samples == [4, 2, 1]
