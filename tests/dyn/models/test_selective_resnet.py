"""The blocks with selective kernels, ResNet-D's shortcut and stem, and grouped bottlenecks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from layer_cases import filled, init_shapes, random_input, shapes_of

from dyn.layers import SelectiveKernel
from dyn.models import (
    Bottleneck,
    PooledConv,
    ResNet,
    SelectiveBasicBlock,
    SelectiveBottleneck,
)

Tiny = partial(ResNet, (1, 1), num_classes=3, width=8, stem="small")
PICTURES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def test_only_one_convolution_of_a_block_is_selective_and_has_no_norm_after_it():
    conv = partial(SelectiveKernel, split_input=True)
    params = init_shapes(Tiny(block=SelectiveBasicBlock, conv=conv), PICTURES)["params"]
    block = params["stage2_block1"]
    assert set(block) == {"conv1", "conv2", "norm2", "downsample_conv", "downsample_norm"}
    assert block["conv1"]["path1_conv"]["kernel"].shape == (3, 3, 4, 16)
    assert set(block["conv2"]) == {"kernel"}
    params = init_shapes(Tiny(block=SelectiveBottleneck, conv=conv), PICTURES)["params"]
    block = params["stage2_block1"]
    assert {"conv1", "norm1", "conv2", "conv3", "norm3"} < set(block) and "norm2" not in block
    assert set(block["conv1"]) == set(block["conv3"]) == {"kernel"}


def test_a_network_with_selective_kernels_trains_in_one_and_two_dimensions():
    for axes in (1, 2):
        net = Tiny(block=SelectiveBasicBlock, conv=SelectiveKernel, spatial_axes=axes)
        x = random_input(2, *(6,) * axes, 3)
        variables = filled(net, x)

        @jax.jit
        def train(variables, x, net=net):
            def loss(params):
                y, _ = net.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
                return jnp.sum(jnp.sin(y))

            return jax.grad(loss)(variables["params"])

        for leaf in jax.tree.leaves(train(variables, x)):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


def test_the_groups_of_a_bottleneck_are_those_of_its_3x3_convolution():
    block = partial(Bottleneck, groups=4, group_width=32)
    params = init_shapes(Tiny(block=block), PICTURES)["params"]["stage2_block1"]
    sizes = {name: params[name]["kernel"].shape for name in ("conv1", "conv2", "conv3")}
    assert sizes == {"conv1": (1, 1, 32, 32), "conv2": (3, 3, 8, 32), "conv3": (1, 1, 32, 64)}


def test_a_deep_stem_has_three_convolutions():
    shapes = shapes_of(init_shapes(Tiny(block=Bottleneck, stem="deep"), PICTURES)["params"])
    stem = {name: shape for name, shape in shapes.items() if name.startswith("stem_conv")}
    assert list(stem.values()) == [(3, 3, 3, 4), (3, 3, 4, 4), (3, 3, 4, 8)]
    assert {"stem_norm1/scale", "stem_norm2/scale", "stem_norm/scale"} < set(shapes)


def test_a_pooled_convolution_averages_what_a_window_has():
    layer = PooledConv(4, (1, 1), 2, use_bias=False)
    x = random_input(2, 5, 4, 3)
    variables = filled(layer, x)
    y = jax.jit(layer.apply)(variables, x)
    assert y.shape == (2, 3, 2, 4)
    kernel = variables["params"]["kernel"][0, 0]
    for i, j in np.ndindex(3, 2):
        window = np.asarray(x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]).mean((1, 2))
        np.testing.assert_allclose(y[:, i, j], window @ kernel, rtol=1e-5, atol=1e-6)
