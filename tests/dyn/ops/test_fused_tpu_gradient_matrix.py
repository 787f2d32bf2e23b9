"""The fused kernel gradient over all geometries and dtypes, with the interpreter's checks."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from kernel_gradient_cases import (
    CASES,
    assert_gradients_agree,
    compute_plainly,
    make_arguments,
    make_geometry,
)
from products import thin_out

from dyn.ops.fused_tpu_gradient import compute_kernel_gradients

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize(
    ("name", "dtype"),
    thin_out(CASES, [jnp.float32, jnp.bfloat16], step=2, slow=["blocks of weighted features"]),
)
def test_every_case_is_the_loop_without_races(name, dtype, capfd):
    """Reads beyond a buffer are errors; what was never written is NaN."""
    case = CASES[name]
    arguments, geometry = make_arguments(case, dtype), make_geometry(case)
    checks = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )
    with pltpu.force_tpu_interpret_mode(checks):
        got = compute_kernel_gradients(*arguments, geometry)
    assert all(np.isfinite(part).all() for part in got if part is not None)
    assert_gradients_agree(got, compute_plainly(*arguments, geometry))
    assert "RACE DETECTED" not in capfd.readouterr().out
