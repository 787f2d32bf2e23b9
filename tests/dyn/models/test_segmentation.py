"""Segmentation heads: parameters, numbers, rates, training and errors."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_oracle
import pytest
from layer_cases import filled, init_shapes, random_input, shapes_of

from dyn.layers import ODConv
from dyn.models import FCN, BasicBlock, DeepLabV3Plus, MobileNetV2, ResNet
from dyn.models.segmentation import compute_stride, resize

FourStages = partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock, num_classes=None, width=4)
OneStage = partial(FourStages, stage_sizes=(1,))
HEADS = {"FCN": FCN, "DeepLabV3Plus": partial(DeepLabV3Plus, features=16)}
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def picture(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# Parameters


def test_parameters_have_fixed_names():
    backbone = partial(FourStages, output_stride=8, conv=partial(ODConv, num_kernels=2))
    net = DeepLabV3Plus(backbone=backbone, features=16)
    params = init_shapes(net, picture(2, 32, 32, 3))["params"]
    attended = {p.split("/")[0] for p in shapes_of(params) if "/attention/" in p}
    assert attended == {"backbone"}
    del params["backbone"]
    convolutions = {p.rsplit("/", 2)[0] for p in shapes_of(params) if p.endswith("conv/kernel")}
    parts = ("depthwise", "pointwise")
    separables = ("aspp/atrous1", "aspp/atrous2", "aspp/atrous3", "decoder1", "decoder2")
    assert convolutions == {
        "low_level",
        *(f"aspp/{name}" for name in ("point", "pooled", "project")),
        *(f"{name}/{part}" for name in separables for part in parts),
    }


# Shapes


@each_head
def test_returns_logits_for_every_pixel(head):
    net = head(num_classes=4, backbone=partial(FourStages, output_stride=16))
    for size in ((33, 50), (7, 5)):
        logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), picture(2, *size, 3))
        assert logits.shape == (2, *size, 4) and logits.dtype == jnp.float32


@pytest.mark.parametrize("halvings", range(6))
def test_downsampling_follows_from_the_sizes(halvings):
    for size in range(1, 100):
        reduced = size
        for _ in range(halvings):
            reduced = (reduced + 1) // 2
        for other in (1, size):  # the other axis of the picture adds nothing, or the same
            stride = compute_stride((size, other), (reduced, 1 if other == 1 else reduced))
            if reduced > 1:
                assert stride == 2**halvings
            else:  # several strides give one feature: any dilation reaches only padding
                assert stride <= 2**halvings and math.ceil(size / stride) == 1


def rates_of(net, size):
    """Dilations of the depthwise convolutions of the pyramid."""
    x = picture(2, *size, 3)
    depthwise = []

    def note_dilation(call, args, fields, context):
        if (
            getattr(context.module, "feature_group_count", 1) > 1
            and context.method_name == "__call__"
        ):
            depthwise.append(context.module.kernel_dilation)
        return call(*args, **fields)

    with nn.intercept_methods(note_dilation):
        jax.eval_shape(net.init, jax.random.key(0), x)
    assert len(depthwise) == 5 and depthwise[3:] == [1, 1]  # pyramid, and decoder
    return depthwise[:3]


@pytest.mark.parametrize(
    ("stem", "output_stride", "rates"),
    [
        ("imagenet", 16, [6, 12, 18]),
        ("imagenet", None, [3, 6, 9]),
        ("small", 4, [24, 48, 72]),
    ],
)
def test_rates_are_as_wide_in_pixels_at_every_stride(stem, output_stride, rates):
    backbone = partial(FourStages, stem=stem, output_stride=output_stride)
    assert rates_of(DeepLabV3Plus(backbone=backbone, features=8), (97, 39)) == rates


def test_the_decoder_takes_the_fine_stage():
    backbone = partial(MobileNetV2, num_classes=None, width=0.25, output_stride=16)
    net = DeepLabV3Plus(backbone=backbone, features=16, fine_stage=2)
    shapes = shapes_of(init_shapes(net, picture(2, 64, 64, 3))["params"])
    # 24 features at a quarter of the picture, a quarter as wide.
    assert shapes["low_level/conv/kernel"] == (1, 1, 8, 3)
    with pytest.raises(ValueError, match="fine_stage=9: the backbone has the stages 1 to 8"):
        init_shapes(net.copy(fine_stage=9), picture(2, 64, 64, 3))


# Numbers


class Thinned(nn.Module):
    """A backbone without parameters: two stages that see every second and every fourth pixel."""

    dtype: type | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = jnp.concatenate([x, x**2, jnp.roll(x, 1, axis=1)], axis=-1)
        x = x.astype(self.dtype or x.dtype)
        return x[:, ::2, ::2], x[:, ::4, ::4]


def thinned_by_hand(x):
    x = np.asarray(x, np.float64)
    x = np.concatenate([x, x**2, np.roll(x, 1, axis=1)], axis=-1)
    return x[:, ::2, ::2], x[:, ::4, ::4]


def resized_by_hand(x, size):
    """Bilinear, one row and then one column after the other; a pixel's value is at its centre."""
    for axis, n in ((1, size[0]), (2, size[1])):
        x, old = np.moveaxis(x, axis, 0), x.shape[axis]
        lines = []
        for i in range(n):
            at = min(max((i + 0.5) * old / n - 0.5, 0), old - 1)
            left = int(at)
            right = min(left + 1, old - 1)
            lines.append(x[left] + (at - left) * (x[right] - x[left]))
        x = np.moveaxis(np.stack(lines), 0, axis)
    return x


def convolved_by_hand(x, kernel, dilation=1):
    """Convolves position by position; depthwise if kernels have one input."""
    groups = x.shape[-1] // kernel.shape[2]
    options = {"kernel_dilation": dilation, "feature_group_count": groups}
    return numpy_oracle.convolve(x, kernel[None], **options)


class ByHand:
    """The layers of the heads in numpy, float64, with the variables of a network."""

    def __init__(self, variables):
        as_float64 = partial(jax.tree.map, lambda a: np.asarray(a, np.float64))
        self.params = as_float64(variables["params"])
        self.statistics = as_float64(variables["batch_stats"])

    def conv_norm(self, x, *path, dilation=1):
        params, statistics = self.params, self.statistics
        for name in path:
            params, statistics = params[name], statistics[name]
        y = convolved_by_hand(x, params["conv"]["kernel"], dilation)
        y = (y - statistics["norm"]["mean"]) / np.sqrt(statistics["norm"]["var"] + 1e-5)
        return np.maximum(y * params["norm"]["scale"] + params["norm"]["bias"], 0)

    def separable(self, x, *path, dilation=1):
        x = self.conv_norm(x, *path, "depthwise", dilation=dilation)
        return self.conv_norm(x, *path, "pointwise")

    def logits(self, x, size):
        params = self.params["logits"]
        return resized_by_hand(x @ params["kernel"][0, 0] + params["bias"], size)


SIZE = (19, 30)


@pytest.mark.parametrize("small", [(5, 7), (1, 2)])
def test_resizes_as_a_loop_over_rows_and_columns(small):
    x = random_input(2, *small, 3)
    expected = resized_by_hand(np.asarray(x), SIZE)
    np.testing.assert_allclose(resize(x, SIZE), expected, rtol=1e-5, atol=1e-6)


def test_fcn_by_hand():
    net, x = FCN(num_classes=4, backbone=Thinned, features=6), random_input(2, *SIZE, 3)
    variables = filled(net, x)
    assert set(variables["params"]) == {"hidden", "logits"}
    by_hand = ByHand(variables)
    _, last = thinned_by_hand(x)
    expected = by_hand.logits(by_hand.conv_norm(last, "hidden"), SIZE)
    assert expected.std() > 0.1
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_deeplab_by_hand():
    # At stride 4 the dilations are four times the rates; zero becomes 1.
    net = DeepLabV3Plus(num_classes=4, backbone=Thinned, features=16, rates=(1, 0, 2))
    x = random_input(2, *SIZE, 3)
    variables = filled(net, x)
    by_hand = ByHand(variables)
    first, last = thinned_by_hand(x)
    pooled = by_hand.conv_norm(last.mean((1, 2), keepdims=True), "aspp", "pooled")
    branches = [
        by_hand.conv_norm(last, "aspp", "point"),
        by_hand.separable(last, "aspp", "atrous1", dilation=4),
        by_hand.separable(last, "aspp", "atrous2", dilation=1),
        by_hand.separable(last, "aspp", "atrous3", dilation=8),
        np.broadcast_to(pooled, (*last.shape[:-1], 16)),
    ]
    y = by_hand.conv_norm(np.concatenate(branches, axis=-1), "aspp", "project")
    low = by_hand.conv_norm(first, "low_level")
    y = np.concatenate([resized_by_hand(y, first.shape[1:3]), low], axis=-1)
    y = by_hand.separable(by_hand.separable(y, "decoder1"), "decoder2")
    expected = by_hand.logits(y, SIZE)
    assert expected.std() > 0.1
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


# Training


def step_of(net, variables, x, labels):
    """A compiled function from parameters and key to gradient, logits and new statistics."""

    def loss(params, key):
        logits, state = net.apply(
            {**variables, "params": params},
            x,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return jnp.sum(labels * nn.log_softmax(logits)), (logits, state["batch_stats"])

    return jax.jit(jax.grad(loss, has_aux=True))


@each_head
def test_gradient_and_statistics_reach_head_and_backbone(head):
    net, x = head(num_classes=3, backbone=partial(OneStage, stem="small")), random_input(3, 6, 5, 3)
    variables = filled(net, x)
    step = step_of(net, variables, x, random_input(3, 6, 5, 3, seed=2))
    gradient, (logits, statistics) = step(variables["params"], jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    assert {path[0].key for path, _ in leaves} >= {"backbone", "logits"}
    for path, leaf in leaves:
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-7, jax.tree_util.keystr(path)
    before = jax.tree.leaves(variables["batch_stats"])
    for old, new in zip(before, jax.tree.leaves(statistics), strict=True):
        assert (old != new).any()
    other = step(variables["params"], jax.random.key(1))[1][0]
    assert not np.allclose(logits, other)  # dropout
    jax.eval_shape(net.apply, variables, x)  # inference needs no rng and changes nothing


def test_statistics_move_to_those_of_the_batch():
    net, x = FCN(num_classes=4, backbone=Thinned, features=6), random_input(2, *SIZE, 3)
    variables = filled(net, x)
    train = partial(net.apply, train=True, mutable=["batch_stats"])
    _, state = jax.jit(train)(variables, x, rngs={"dropout": jax.random.key(0)})
    _, last = thinned_by_hand(x)
    hidden = convolved_by_hand(last, variables["params"]["hidden"]["conv"]["kernel"])
    old, new = variables["batch_stats"]["hidden"]["norm"], state["batch_stats"]["hidden"]["norm"]
    for name, value in (("mean", hidden.mean((0, 1, 2))), ("var", hidden.var((0, 1, 2)))):
        expected = 0.9 * old[name] + 0.1 * value
        np.testing.assert_allclose(new[name], expected, rtol=1e-4, atol=1e-5)


@each_head
def test_computes_in_bfloat16_and_returns_logits_in_float32(head):
    """Under strict promotion: nothing is cast by accident."""
    net, x = head(num_classes=4, backbone=Thinned, dtype=jnp.bfloat16), random_input(2, 8, 8, 3)
    variables = filled(net, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    apply = partial(net.apply, mutable=["intermediates"], capture_intermediates=True)
    logits, state = jax.eval_shape(apply, variables, x)
    inside = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    for path, leaf in inside:
        keys = [key.key for key in path if hasattr(key, "key")]
        # Norms, and the logits of the whole network, are in float32.
        assert "norm" in keys or keys == ["__call__"] or leaf.dtype == jnp.bfloat16, keys
    assert len(inside) > 4 and logits.dtype == jnp.float32


def test_backbone_computes_in_the_dtype_of_the_head_or_its_own():
    def dtype_inside(own=None, dtype=None):
        x, backbone = picture(2, 16, 16, 3), partial(OneStage, dtype=own)
        net = FCN(num_classes=3, backbone=backbone, dtype=dtype)
        apply = partial(net.apply, capture_intermediates=True, mutable=["intermediates"])
        # flax's BatchNorm, which the backbone has, does not run in bfloat16 under strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            _, state = jax.eval_shape(apply, init_shapes(net, x), x)
        return state["intermediates"]["backbone"]["stem_conv"]["__call__"][0].dtype

    assert dtype_inside() == jnp.float32
    assert dtype_inside(dtype=jnp.bfloat16) == jnp.bfloat16
    assert dtype_inside(own=jnp.bfloat16) == jnp.bfloat16


# Errors


def trace_training(net, *shape):
    x = picture(*shape)
    train = partial(net.apply, train=True, mutable=["batch_stats"])
    jax.eval_shape(train, init_shapes(net, x), x, rngs={"dropout": jax.random.key(0)})


def test_training_needs_more_than_one_vector():
    net = DeepLabV3Plus(backbone=Thinned, features=8)
    with pytest.raises(ValueError, match="aspp/pooled cannot normalise"):
        trace_training(net, 1, 16, 16, 3)
    trace_training(net, 2, 16, 16, 3)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    jax.eval_shape(lambda x: net.init(keys, x, True), picture(1, 16, 16, 3))
    net = FCN(backbone=Thinned)  # 4 times smaller
    trace_training(net, 1, 16, 16, 3)
    with pytest.raises(ValueError, match="hidden cannot normalise"):
        trace_training(net, 1, 4, 4, 3)


@each_head
@pytest.mark.parametrize(
    ("backbone", "shape", "message"),
    [
        (OneStage, (16, 16, 3), r"takes pictures .* \(16, 16, 3\)"),
        (partial(OneStage, num_classes=10), (2, 16, 16, 3), r"num_classes=None.*\(2, 10\)"),
        (OneStage(), (2, 16, 16, 3), r"write partial\(ResNet18, num_classes=None\)"),
    ],
    ids=["no batch", "classifier", "finished backbone"],
)
def test_errors_name_what_is_right(head, backbone, shape, message):
    with pytest.raises(ValueError, match=message):
        init_shapes(head(backbone=backbone), picture(*shape))
