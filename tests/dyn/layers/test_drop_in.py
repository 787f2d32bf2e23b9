"""A layer takes `nn.Conv`'s place; `test_drop_in_matrix` has other layers in flax's ResNet."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax_resnet import assert_trains_inside_flax_resnet
from layer_cases import CONVOLUTIONS, init_shapes, shapes_of
from odd_host import make_odd_network

from dyn.layers import FDConv


def test_odconv_trains_inside_flax_resnet():
    assert_trains_inside_flax_resnet(CONVOLUTIONS["ODConv"])


# `test_drop_in_matrix` trains the network with every layer.
@pytest.mark.parametrize(
    "name", ["nn.Conv", "FDConv, everywhere", "ODConv", "WarehouseConv", "DCDConv"]
)
def test_a_default_gives_way_where_nn_conv_works(name):
    x = jax.ShapeDtypeStruct((1, 3, 3, 1), jnp.float32)
    y, _ = jax.eval_shape(make_odd_network(name).init_with_output, jax.random.key(0), x)
    assert y.shape == (1, 1)


def test_fd_conv_has_as_many_groups_as_frequencies_and_at_most_64():
    """Its weights show the number; one that somebody wrote is not reduced."""
    make = partial(FDConv, min_features=0)
    for features, size, groups in ((1, (1, 1), 2), (8, (1, 1), 16), (8, (3, 3), 64), (8, (3,), 40)):
        x = jnp.ones((2, *(5,) * len(size), 3))
        init = partial(make(features, size).init_with_output, mutable=["params", "intermediates"])
        _, state = jax.eval_shape(init, jax.random.key(0), x)
        (weights,) = state["intermediates"]["attention"]["weights"]
        assert weights["kernel"].shape == (2, groups)
    with pytest.raises(ValueError, match="num_kernels=64 must be from 1 to 16"):
        init_shapes(make(8, (1, 1), num_kernels=64), jnp.ones((2, 5, 5, 3)))
    x = jnp.ones((2, 5, 5, 3))
    wanted = shapes_of(init_shapes(make(8, (3, 3), num_kernels=64), x))
    assert shapes_of(init_shapes(make(8, (3, 3)), x)) == wanted
