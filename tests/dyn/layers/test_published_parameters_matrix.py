"""Parameters of a ResNet-18 with each layer: the published numbers, or those of its formula."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from layer_cases import init_shapes

from dyn import layers
from dyn.diagnostics import count_parameters
from dyn.models import ResNet18, ResNet50

pytestmark = pytest.mark.matrix


def count(conv):
    """Counts the parameters of a ResNet-18 for ten classes."""
    net = ResNet18(num_classes=10, conv=conv)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    return count_parameters(init_shapes(net, x)["params"])


def test_dynamic_conv():
    """45,471,092 with all 3x3 convolutions of the blocks dynamic and the three 1x1 shortcuts too."""
    conv = partial(layers.DynamicConv, num_kernels=4, use_bias=False)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    blocks = count_parameters(init_shapes(ResNet18(num_classes=1000, conv=conv), x)["params"])
    for i in (64, 128, 256):
        features = jax.ShapeDtypeStruct((2, 4, 4, i), jnp.float32)
        shortcut = count_parameters(init_shapes(conv(2 * i, (1, 1), 2), features)["params"])
        blocks += shortcut - 2 * i * i  # the static one is counted already
    assert blocks == 45_471_092


def test_cond_conv():
    """K kernels for each of the sixteen, and a routing (I + 1) K for each."""
    net = ResNet18(num_classes=1000, conv=partial(layers.CondConv, num_kernels=8))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    inputs = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 3
    want = 11_689_512 + 7 * 10_985_472 + sum((i + 1) * 8 for i in inputs)
    assert count_parameters(init_shapes(net, x)["params"]) == want == 88_615_080


@pytest.mark.parametrize(
    ("network", "pool", "num_classes", "parameters"),
    [
        (ResNet18, 2, 1000, 14_703_332),
        (ResNet18, 2, 17, 14_136_141),
        (ResNet50, 1, 1000, 29_835_056),
    ],
)
def test_dcd_conv(network, pool, num_classes, parameters):
    """Every convolution of the residual branches, none of the shortcuts, and the classifier."""
    net = network(num_classes=num_classes, conv=partial(layers.DCDConv, pool=pool))
    params = init_shapes(net, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))["params"]
    static = params.pop("head")["kernel"]
    features = jax.ShapeDtypeStruct((2, static.shape[0]), jnp.float32)
    head = init_shapes(layers.DCDDense(num_classes), features)["params"]
    assert head["kernel"].shape == static.shape
    assert count_parameters(params) + count_parameters(head) == parameters


def test_fd_conv():
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    net = ResNet18(num_classes=10, conv=layers.FDConv)
    params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    # (512 * 3) rows of 512 * 3 // 2 + 1 complex numbers.
    assert params["stage4_block2"]["conv2"]["spectrum"].shape == (1536, 769, 2)


def test_gated_conv():
    static = count(nn.Conv)
    convs = [(64, 64)] * 4 + [
        (i, o) for n in (128, 256, 512) for i, o in [(n // 2, n), (n, n), (n, n), (n, n)]
    ]
    slices = sum(i * o for i, o in convs)
    assert count(partial(layers.GatedConv, granularity="slice", static=True)) == static + slices
    heads = sum((i + 1) * o for i, o in convs)
    assert count(partial(layers.GatedConv, granularity="filter")) == static + heads
    kernels = sum(9 * i * o + 2 * (i + 1) for i, o in convs)
    assert count(partial(layers.GatedConv, num_kernels=2)) == static + kernels


def test_pixel_conv():
    # Each block convolution from I to O features gains one kernel and the two layers of its generator.
    widths = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    gained = 0
    for i, o in itertools.pairwise(widths):
        squeezed = max(i // 4, 16)
        gained += 9 * i * o + squeezed * i + squeezed * 2 + 2
    assert count(partial(layers.PixelDynamicConv, num_kernels=2)) == count(nn.Conv) + gained


def test_rotated_conv():
    static = count(nn.Conv)
    inputs = [64] * 4 + [64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512]
    squeezed = [max(i // 16, 16) for i in inputs]
    generators = sum(i * d + 2 * d + (d + 1) * 8 for i, d in zip(inputs, squeezed, strict=True))
    assert count(partial(layers.RotatedConv, rotations=8)) == static + generators
    # Orientations share one kernel: a pooled layer has no more parameters than a static one.
    assert count(partial(layers.RotatedConv, rotations=8, pooling="max")) == static
    scores = 2 * 2 * (64 + 128 + 256 + 512)
    assert count(partial(layers.RotatedConv, rotations=8, pooling="attention")) == static + scores


def test_squeeze_excite():
    """11,689,512 + 2 sum of 2 C^2 / 16 + C / 16 + C over the stages: the 11.78 million of the field."""
    attention = {
        c: count_parameters(
            init_shapes(layers.SqueezeExcite(), jax.ShapeDtypeStruct((2, 4, 4, c), jnp.float32))
        )
        for c in (64, 128, 256, 512)
    }
    assert attention == {c: 2 * c * c // 16 + c // 16 + c for c in attention}
    by_formula = 11_689_512 + 2 * sum(attention.values())
    net = ResNet18(num_classes=1000, attention=layers.SqueezeExcite)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = init_shapes(net, x)["params"]
    assert count_parameters(params) == by_formula == 11_778_592


def test_cbam():
    """11,779,392: 2 C^2 / 16 + C / 16 + C + 7 * 7 * 2 + 2 for each of two blocks of four widths."""
    net = ResNet18(num_classes=1000, attention=layers.CBAM)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    per_block = sum(2 * c * c // 16 + c // 16 + c + 98 + 2 for c in (64, 128, 256, 512))
    assert (
        count_parameters(init_shapes(net, x)["params"]) == 11_689_512 + 2 * per_block == 11_779_392
    )


@pytest.mark.parametrize(
    ("ratios", "parameters"),
    [
        (dict(cell_ratio=0.5, in_ratio=0.5, out_ratio=0.5), 7_431_044),
        (dict(cell_ratio=1), 11_932_148),
        (dict(cell_ratio=2), 23_242_127),
        (dict(cell_ratio=4), 45_862_085),
    ],
    ids=["half", "one", "two", "four"],
)
def test_warehouse_conv(ratios, parameters):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def network(conv):
        return ResNet18(num_classes=1000, conv=conv, shortcut=conv)

    net = layers.share_kernels(network, x, **ratios)
    params = init_shapes(net, x)["params"]
    assert count_parameters(params) == parameters
    if ratios == {"cell_ratio": 1}:
        cells = {name: w["cells"].shape for name, w in params["conv"].items()}
        assert cells == {
            "stage1": (56, 64, 64),
            "stage2": (47, 128, 128),
            "stage3": (47, 256, 256),
            "stage4": (27, 512, 512),
        }

        def attention_outputs(block, name):
            return params[block][name]["attention"]["cell"]["bias"].size

        assert attention_outputs("stage1_block1", "conv1") == 513
        assert attention_outputs("stage2_block1", "conv1") == 1026
        assert attention_outputs("stage2_block1", "downsample_conv") == 114
        assert attention_outputs("stage3_block1", "conv2") == 432
        assert attention_outputs("stage3_block1", "conv1") == 864
        assert attention_outputs("stage4_block1", "downsample_conv") == 96
        assert attention_outputs("stage4_block2", "conv2") == 252


def test_kernel_representation():
    """d (initial) + 2 d (norm) + (2d + 1) d (hidden) + (d + 1) d (update) + d sum of the I_l."""
    d, conv = 8, partial(layers.ODConv, num_kernels=1)
    net = ResNet18(num_classes=5, conv=conv, context="carried", representation=d)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]["representation"]
    inputs = 4 * 64 + (64 + 3 * 128) + (128 + 3 * 256) + (256 + 3 * 512)
    want = d + 2 * d + (2 * d + 1) * d + (d + 1) * d + d * inputs
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == want
