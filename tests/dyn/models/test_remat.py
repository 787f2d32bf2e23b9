"""A network whose blocks are computed again in the backward pass: the same gradient from fewer numbers."""

from functools import partial

import jax
import pytest
from layer_cases import assert_trees_close, filled, init_shapes, random_input, shapes_of
from residuals import count_residuals, make_loss

from dyn.layers import DynamicConv
from dyn.models import BasicBlock, ResNet

Small = partial(
    ResNet, (1,), BasicBlock, 3, width=2, stem="small", conv=partial(DynamicConv, num_kernels=2)
)


def test_keeps_less_for_the_same_gradient_under_the_same_names():
    plain, again = Small(), Small(remat=True)
    x = random_input(2, 6, 6, 3)
    variables = filled(plain, x)
    assert shapes_of(init_shapes(again, x)) == shapes_of(variables)
    most, least = (make_loss(net, variables, x) for net in (plain, again))
    params = variables["params"]
    assert count_residuals(least, params) < count_residuals(most, params) / 2
    want, got = (jax.jit(jax.grad(loss, has_aux=True))(params) for loss in (most, least))
    assert_trees_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_name_is_no_policy():
    with pytest.raises(ValueError, match="remat='dots' must be True or False or a function"):
        Small(remat="dots")
