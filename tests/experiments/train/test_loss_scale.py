"""The loss's factor: when it grows and falls, and what it keeps in half precision."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train.loss_scale import (
    all_finite,
    check_finite,
    make_loss_scale,
    update_loss_scale,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_the_factor_grows_after_finite_steps_and_never_falls_below_one():
    scale, factors = make_loss_scale(1.5), []
    for finite in (True, True, True, False, True, False, False, True):
        scale = update_loss_scale(scale, jnp.bool_(finite), grow_every=3)
        factors.append(float(scale.factor))
    assert factors == [1.5, 1.5, 3.0, 1.5, 1.5, 1.0, 1.0, 1.0]
    assert update_loss_scale(scale, jnp.bool_(False), grow_every=0) == scale


@pytest.mark.parametrize(
    ("loss", "gradient", "factor", "outcome"),
    [
        (1.0, 1.0, 4.0, (True, False)),
        (1.0, np.inf, 4.0, (False, True)),
        (1.0, np.inf, 1.0, (False, False)),  # it cannot fall any more
        (np.nan, np.nan, 4.0, (False, False)),
    ],
)
def test_only_gradients_that_a_smaller_factor_may_mend_count_as_overflow(
    loss, gradient, factor, outcome
):
    scale = make_loss_scale(factor)
    seen = check_finite(jnp.float32(loss), jnp.float32(gradient), jnp.ones(2), scale, 2)
    assert tuple(map(bool, seen)) == outcome
    assert all_finite({"a": jnp.ones(3), "b": jnp.zeros(0)})
