"""ODConv on a mesh: a train step gathers nothing, and explicit axes, JAX's default, change no number."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from layer_cases import compiled_case
from sharded_steps import gathers, shardings, train_step_text

from dyn.layers import Conv, ODConv


@pytest.mark.parametrize("axes", ["explicit", "auto"])
def test_a_train_step_gathers_nothing(axes):
    """No device needs another's samples."""
    conv = partial(ODConv, num_kernels=4, attention_norm="batch")
    text = train_step_text(conv, axes=axes)
    assert "all-reduce" in text  # of gradients and statistics, so the batch is sharded
    assert not gathers(text)


def test_explicit_axes_change_no_number():
    layer, variables, x, apply, *_ = compiled_case("ODConv")
    replicated, batch = shardings(4, "explicit")
    on_mesh = jax.device_put(variables, replicated), jax.device_put(x, batch)
    y = jax.jit(layer.apply)(*on_mesh)
    assert jax.typeof(y).sharding.spec == PartitionSpec("data", None, None, None)
    np.testing.assert_allclose(y, apply(variables, x), rtol=1e-5, atol=1e-6)


def test_parameters_are_initialised_on_a_mesh_of_one_device():
    x = jax.device_put(jnp.ones((4, 8, 8, 3)), shardings(1, "explicit")[1])
    y, variables = jax.jit(Conv(8, (3, 3)).init_with_output)(jax.random.key(0), x)
    assert y.shape == (4, 8, 8, 8) and variables["params"]["kernel"].shape == (3, 3, 3, 8)
