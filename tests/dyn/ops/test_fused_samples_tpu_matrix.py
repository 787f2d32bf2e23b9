"""The kernels for samples in all their cases, with the interpreter's checks for races and bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from products import thin_out
from sample_cases import (
    ASSEMBLIES,
    CASES,
    assert_assembly_agrees,
    assert_convolution_agrees,
    convolve_one_by_one,
    make_arrays,
    make_geometry,
)

from dyn.ops.fused_samples_tpu import convolve_with_sample_kernels

pytestmark = pytest.mark.matrix


def make_checks():
    return pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    thin_out(CASES, [jnp.float32, jnp.bfloat16], step=4, slow=["pixels 2d two blocks of samples"]),
)
def test_the_convolution_and_its_gradients_are_those_of_each_sample(name, dtype, capfd):
    assert_convolution_agrees(name, dtype, make_checks())
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("name", "terms"), [*((name, 0) for name in ASSEMBLIES), ("other cells at each tap", 3)]
)
def test_assembled_kernels_and_their_gradients_are_those_of_the_products(name, terms, dtype, capfd):
    assert_assembly_agrees(name, dtype, make_checks(), terms)
    assert "RACE DETECTED" not in capfd.readouterr().out


def test_second_derivatives_come_from_plain_operations():
    x, w, _ = make_arrays("1d", jnp.float32)
    geometry = make_geometry("1d")

    def penalty(w, convolve):
        return jnp.sum(jax.grad(lambda x: jnp.sum(convolve(x, w) ** 3))(x) ** 2)

    want = jax.grad(penalty)(w, lambda x, w: convolve_one_by_one(x, w, geometry))
    with pltpu.force_tpu_interpret_mode():
        got = jax.jit(jax.grad(penalty), static_argnums=1)(
            w, lambda x, w: convolve_with_sample_kernels(x, w, geometry, "highest")
        )
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())
