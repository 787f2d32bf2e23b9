"""A layer takes `nn.Conv`'s place; `test_drop_in_matrix` has other layers in flax's ResNet."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax_resnet import assert_trains_inside_flax_resnet
from layer_cases import CONVOLUTIONS, DENSE, LAYERS, init_shapes, shapes_of
from odd_host import make_odd_network

from dyn.layers import DynamicConv, FDConv


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


@pytest.mark.parametrize("name", (*CONVOLUTIONS, *DENSE))
def test_initialisers_may_name_axes_for_partitioning(name):
    case = LAYERS[name]
    axes = (None, "features") if name in DENSE else (None, None, None, "features")
    init = nn.with_partitioning(nn.initializers.lecun_normal(), axes)
    shapes = init_shapes(case.layer(kernel_init=init), jnp.ones(case.shape))
    plain = init_shapes(case.layer(), jnp.ones(case.shape))
    assert shapes_of(nn.meta.unbox(shapes)) == shapes_of(plain)


def test_the_axis_of_candidates_has_no_name():
    normal, zeros = nn.initializers.normal(), nn.initializers.zeros_init()
    layer = DynamicConv(
        *(6, (3, 3)),
        num_kernels=2,
        kernel_init=nn.with_partitioning(normal, (None, None, None, "features")),
        bias_init=nn.with_partitioning(zeros, ("features",)),
    )
    params = init_shapes(layer, jnp.ones((1, 4, 4, 3)))["params"]
    assert params["kernel"].names == (None, None, None, None, "features")
    assert params["bias"].names == (None, "features")
    assert params["kernel"].value.shape == (2, 3, 3, 3, 6)
