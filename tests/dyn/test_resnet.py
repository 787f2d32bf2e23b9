"""Residual networks: published parameter and multiply-add counts, padding, and what callers may vary."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from layer_cases import shapes_of as paths

from dyn.diagnostics import count_macs, count_parameters
from dyn.layers import ODConv
from dyn.models import BasicBlock, Bottleneck, ResNet, ResNet18, ResNet34, ResNet50

TinyResNet = partial(ResNet, stage_sizes=(1, 1), num_classes=3, width=4)


def shapes_of(net, *shape, dtype=jnp.float32):
    x = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(net.init, jax.random.key(0), x)


def filled(shapes, seed=0):
    """A random number for every parameter, without compiling an initialiser; variances positive."""
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(
            (0.3 * rng.standard_normal(leaf.shape)) ** (2 if path[-1].key == "var" else 1),
            np.float32,
        ),
        shapes,
    )


@pytest.mark.parametrize(
    ("network", "num_kernels", "parameters"),
    [
        (ResNet18, 0, 11_689_512),
        (ResNet34, 0, 21_797_672),
        (ResNet50, 0, 25_557_032),
        (ResNet18, 1, 11_943_944),
        (ResNet18, 4, 44_901_640),
        (ResNet50, 1, 28_635_112),
        (ResNet50, 4, 90_670_888),
    ],
)
def test_has_exactly_the_published_number_of_parameters(network, num_kernels, parameters):
    conv = partial(ODConv, num_kernels=num_kernels) if num_kernels else nn.Conv
    # The number does not depend on the size of the pictures; small ones are quicker to trace.
    params = shapes_of(network(num_classes=1000, conv=conv), 2, 32, 32, 3)["params"]
    assert count_parameters(params) == parameters


def test_attention_has_exactly_the_published_number_of_parameters():
    net = ResNet18(num_classes=1000, conv=partial(ODConv, num_kernels=4))
    shapes = paths(shapes_of(net, 2, 32, 32, 3)["params"])
    attention = [shape for path, shape in shapes.items() if "/attention/" in path]
    assert count_parameters([jax.ShapeDtypeStruct(s, jnp.float32) for s in attention]) == 255_712


def macs_of(net, size):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return count_macs(net.apply, jax.eval_shape(net.init, jax.random.key(0), x), x)


def test_static_resnet18_has_exactly_the_published_number_of_multiply_adds():
    assert macs_of(ResNet18(num_classes=1000), 224) == 1_814_073_344


def test_dynamic_multiply_adds_are_the_static_ones_and_those_of_mixing_and_attention():
    """K = 4 adds one multiply-add for each of the 4 * 10,985,472 numbers of its block kernels.

    Attention adds a matrix product for each of its weight matrices: its 255,712 parameters without the
    biases and the norms' scales and biases.
    """
    net = ResNet18(num_classes=1000, conv=partial(ODConv, num_kernels=4))
    shapes = paths(shapes_of(net, 1, 32, 32, 3)["params"])
    matrices = sum(
        s[0] * s[1]
        for p, s in shapes.items()
        if "/attention/" in p and p.endswith("kernel") and len(s) == 2
    )
    assert 200_000 < matrices < 255_712
    assert macs_of(net, 224) == 1_814_073_344 + 4 * 10_985_472 + matrices


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("num_kernels", [1, 4])
def test_static_twin_differs_only_in_the_block_convolutions(block, num_kernels):
    static = shapes_of(TinyResNet(block=block), 2, 16, 16, 3)
    dynamic = shapes_of(
        TinyResNet(block=block, conv=partial(ODConv, num_kernels=num_kernels)), 2, 16, 16, 3
    )
    block_convolutions = {
        p for p in paths(static["params"]) if p.startswith("stage") and "/conv" in p
    }
    assert len(block_convolutions) == (4 if block is BasicBlock else 6)
    for collection in ("params", "batch_stats"):
        ours, twins = paths(dynamic[collection]), paths(static[collection])
        outside = {p: s for p, s in ours.items() if "/attention/" not in p}
        assert outside.keys() == twins.keys()
        for path, shape in outside.items():
            expected = (num_kernels, *twins[path]) if path in block_convolutions else twins[path]
            assert shape == expected, path
        # Every block convolution has attention, and nothing else has.
        owners = {p.split("/attention/")[0] + "/kernel" for p in ours if "/attention/" in p}
        assert owners == block_convolutions
    assert set(dynamic) == {"params", "batch_stats", "attention"}
    assert set(static) == {"params", "batch_stats"}


def convolve(x, kernel, strides, padding):
    axes = "DHW"[-(x.ndim - 2) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides,) * len(axes),
        [(padding, padding)] * len(axes),
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )


def normalize(x, variables, name):
    params, statistics = variables["params"][name], variables["batch_stats"][name]
    x = (x - statistics["mean"]) / jnp.sqrt(statistics["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


STATIC = partial(nn.Conv, use_bias=False)
NORM = partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_strided_basic_block_pads_as_torch_does(axes):
    """torch pads both ends by one; 'SAME' would pad a strided even axis at its end alone."""
    block = BasicBlock(features=3, strides=2, conv=STATIC, shortcut=STATIC, norm=NORM)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, *(6,) * axes, 2)), jnp.float32)
    variables = filled(jax.eval_shape(block.init, jax.random.key(0), x))

    @jax.jit
    def by_hand(variables, x):
        kernels = {
            name: module["kernel"]
            for name, module in variables["params"].items()
            if "kernel" in module
        }
        y = convolve(x, kernels["conv1"], 2, 1)
        y = nn.relu(normalize(y, variables, "norm1"))
        y = normalize(convolve(y, kernels["conv2"], 1, 1), variables, "norm2")
        short = convolve(x, kernels["downsample_conv"], 2, 0)
        return nn.relu(y + normalize(short, variables, "downsample_norm"))

    y, _ = jax.jit(block.apply)(variables, x)
    assert y.shape == (2, *(3,) * axes, 3)
    np.testing.assert_allclose(y, by_hand(variables, x), rtol=1e-4, atol=1e-5)


def test_a_bottleneck_strides_in_its_3x3_convolution():
    block = Bottleneck(features=2, strides=2, conv=STATIC, shortcut=STATIC, norm=NORM)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 6, 6, 3)), jnp.float32)
    variables = filled(jax.eval_shape(block.init, jax.random.key(0), x))

    @jax.jit
    def by_hand(variables, x):
        params = variables["params"]
        y = convolve(x, params["conv1"]["kernel"], 1, 0)
        y = nn.relu(normalize(y, variables, "norm1"))
        y = convolve(y, params["conv2"]["kernel"], 2, 1)
        y = nn.relu(normalize(y, variables, "norm2"))
        y = normalize(convolve(y, params["conv3"]["kernel"], 1, 0), variables, "norm3")
        short = convolve(x, params["downsample_conv"]["kernel"], 2, 0)
        return nn.relu(y + normalize(short, variables, "downsample_norm"))

    y, _ = jax.jit(block.apply)(variables, x)
    assert y.shape == (2, 3, 3, 8)
    np.testing.assert_allclose(y, by_hand(variables, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_stems_and_head_by_hand(stem, axes):
    """A network without blocks is a stem, a mean over space, and a linear classifier.

    The axes are 12 long and 6 before the max pooling: 'SAME' would pad neither on both ends alike.
    """
    net = ResNet((), BasicBlock, num_classes=3, width=4, stem=stem, spatial_axes=axes)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, *(12,) * axes, 2)), jnp.float32)
    variables = filled(shapes_of(net, *x.shape))

    @jax.jit
    def by_hand(variables, x):
        kernel = variables["params"]["stem_conv"]["kernel"]
        if stem == "imagenet":
            x = nn.relu(normalize(convolve(x, kernel, 2, 3), variables, "stem_norm"))
            # torch's max pooling: 3 wide, stride 2, one more on both ends that never wins.
            ends = [(0, 0), *[(1, 1)] * axes, (0, 0)]
            x = jnp.pad(x, ends, constant_values=-jnp.inf)
            for axis in range(1, axes + 1):
                n = (x.shape[axis] - 3) // 2 + 1
                thirds = [lax.slice_in_dim(x, t, t + 2 * n - 1, 2, axis) for t in range(3)]
                x = jnp.max(jnp.stack(thirds), axis=0)
        else:
            x = nn.relu(normalize(convolve(x, kernel, 1, 1), variables, "stem_norm"))
        head = variables["params"]["head"]
        return x.mean(tuple(range(1, axes + 1))) @ head["kernel"] + head["bias"]

    logits = jax.jit(net.apply)(variables, x)
    assert variables["params"]["stem_conv"]["kernel"].shape == (
        *(7 if stem == "imagenet" else 3,) * axes,
        2,
        4,
    )
    np.testing.assert_allclose(logits, by_hand(variables, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("shape", [(2, 65, 2), (2, 33, 21, 3)])
@pytest.mark.parametrize(
    "conv", [nn.Conv, partial(ODConv, num_kernels=2)], ids=["static", "dynamic"]
)
def test_takes_series_and_pictures_of_odd_sizes(shape, stem, conv):
    net = ResNet18(num_classes=5, width=8, conv=conv, stem=stem, spatial_axes=len(shape) - 2)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize(("shape", "axes"), [((2, 8, 8, 3), 1), ((8, 8, 3), 2), ((2, 8, 3), 2)])
def test_a_wrong_rank_is_an_error_that_says_what_is_right(shape, axes):
    net = TinyResNet(block=BasicBlock, spatial_axes=axes)
    with pytest.raises(ValueError, match=rf"spatial_axes={axes}") as error:
        shapes_of(net, *shape)
    assert str(shape) in str(error.value)


def test_an_unknown_stem_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="'tiny' is unknown: write 'imagenet' or 'small'"):
        shapes_of(TinyResNet(block=BasicBlock, stem="tiny"), 2, 8, 8, 3)


def test_computes_in_the_dtype_it_is_given_and_keeps_parameters_in_float32():
    net = ResNet(
        (1,),
        BasicBlock,
        num_classes=3,
        width=4,
        stem="small",
        conv=partial(ODConv, num_kernels=2),
        dtype=jnp.bfloat16,
    )
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8, 3)), jnp.float32)
    # flax's BatchNorm does not run in bfloat16 under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        shapes = shapes_of(net, *x.shape)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
        # Positive, so that the logits are no differences of nearly equal numbers.
        variables = jax.tree.map(np.abs, filled(shapes))
        apply = jax.jit(partial(net.apply, mutable=["intermediates"], capture_intermediates=True))
        logits, state = apply(variables, x)
        exact = jax.jit(net.copy(dtype=None).apply)(variables, x)
    assert logits.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    (y,) = state["intermediates"]["stage1_block1"]["conv1"]["__call__"]
    assert y.dtype == jnp.bfloat16
    # Numbers are rounded to 8 bits, 0.4 percent, in each of about ten steps.
    np.testing.assert_allclose(logits.astype(jnp.float32), exact, rtol=0.05)


def test_drops_features_in_training_only():
    net = TinyResNet(block=BasicBlock, stem="small", dropout=0.5)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 8, 8, 3)), jnp.float32)
    variables = filled(shapes_of(net, *x.shape))
    train = jax.jit(
        lambda v, key: net.apply(v, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[
            0
        ]
    )
    one, other = train(variables, jax.random.key(1)), train(variables, jax.random.key(2))
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(one, train(variables, jax.random.key(1)))
    apply = jax.jit(net.apply)  # needs no rng
    np.testing.assert_array_equal(apply(variables, x), apply(variables, x))


def test_statistics_are_updated_in_training_only():
    net = TinyResNet(block=BasicBlock, stem="small", conv=partial(ODConv, num_kernels=2))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 8, 8, 3)), jnp.float32)
    variables = filled(shapes_of(net, *x.shape))
    step = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))
    _, state = step(variables, x)
    before, after = paths(variables["batch_stats"]), paths(state["batch_stats"])
    assert before == after
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
    # In inference nothing is mutable, so neither the model's norms nor the layers' can change.
    jax.eval_shape(net.apply, variables, x)
