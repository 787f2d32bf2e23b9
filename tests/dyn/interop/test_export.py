"""Export as StableHLO: one program for any batch on any platform."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from export_checks import assert_same_at_any_batch, example_of
from layer_cases import CONVOLUTIONS, filled, random_input

from dyn.interop import to_stablehlo
from dyn.ops import planner


def test_odconv_runs_with_any_batch():
    layer, x = CONVOLUTIONS["ODConv"].layer(), random_input(32, 6, 5, 4)
    assert_same_at_any_batch(partial(layer.apply, filled(layer, x)), x)


def test_a_single_platform_is_planned_for(monkeypatch):
    plans = []
    plan = planner.plan

    def record(*args, **kwargs):
        plans.append(plan(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(planner, "plan", record)
    layer, x = CONVOLUTIONS["ODConv"].layer(), random_input(2, 6, 5, 4)
    function = partial(layer.apply, filled(layer, x))
    for platforms, expected in [(("cuda",), "gpu"), (("cpu",), "cpu"), (("cpu", "cuda"), "tpu")]:
        to_stablehlo(function, example_of(x), platforms)
        assert plans.pop().platform == expected
    jax.eval_shape(function, x)
    assert plans.pop().platform == "cpu"


def test_a_function_that_depends_on_the_batch_size_is_refused():
    def double_small_batches(x):
        return x if x.shape[0] > 2 else 2 * x

    with pytest.raises(ValueError, match="depends on the size of a batch"):
        to_stablehlo(double_small_batches, jax.ShapeDtypeStruct((3,), jnp.float32))
