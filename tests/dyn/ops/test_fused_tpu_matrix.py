"""The fused kernel and its gradients in all its cases, with the interpreter's checks for races and bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_cases import CASES, assert_fused_agrees
from jax.experimental.pallas import tpu as pltpu
from products import thin_out

from dyn.ops import dynamic_conv, platforms

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize(("name", "dtype"), thin_out(CASES, [jnp.float32, jnp.bfloat16], step=3))
def test_the_kernel_and_its_gradients_are_the_definition(name, dtype, capfd):
    checks = pltpu.InterpretParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )
    assert_fused_agrees(name, dtype, checks)
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.parametrize("pixelwise", [False, True])
def test_second_derivatives_come_from_plain_operations(pixelwise):
    x, mix = jnp.linspace(-1, 1, 96).reshape(2, 6, 8), jnp.array([[0.3, 0.7], [1.0, -1.0]])
    if pixelwise:
        mix = mix[:, None] * jnp.linspace(0.5, 1.5, 6)[:, None]
    w = jnp.cos(jnp.arange(2 * 3 * 8 * 8.0)).reshape(2, 3, 8, 8)

    def penalty(mix, lowering):
        def loss(x):
            return jnp.sum(dynamic_conv(x, w, mix, lowering=lowering, precision="highest") ** 3)

        return jnp.sum(jax.grad(loss)(x) ** 2)

    want = jax.grad(penalty)(mix, "outputs" if pixelwise else "reference")
    with platforms.plan_for_platform("tpu"), pltpu.force_tpu_interpret_mode():
        got = jax.jit(jax.grad(penalty), static_argnums=1)(mix, "fused")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
