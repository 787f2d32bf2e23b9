"""Segmentation heads against a computation by hand: in inference, in training, and in bfloat16."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input, shapes_of

from dyn.layers import ODConv
from dyn.models import FCN, BasicBlock, DeepLabV3Plus, ResNet
from dyn.models.segmentation import resize

TinyFeatures = partial(ResNet, (1, 1), BasicBlock, num_classes=None, width=4, stem="small")
BOTH = pytest.mark.parametrize(
    "head", [FCN, partial(DeepLabV3Plus, features=16)], ids=["FCN", "DeepLabV3Plus"]
)


class Thinned(nn.Module):
    """A backbone without parameters: two stages that see every second and every fourth pixel."""

    dtype: type | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = jnp.concatenate([x, x**2, jnp.roll(x, 1, axis=1)], axis=-1)
        x = x.astype(self.dtype or x.dtype)
        return x[:, ::2, ::2], x[:, ::4, ::4]


# Numbers


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
    """A convolution that keeps the size, tap by tap; of each feature by itself if kernels have one input."""
    rows, columns = (k // 2 for k in kernel.shape[:2])
    padded = np.pad(x, [(0, 0), (rows * dilation,) * 2, (columns * dilation,) * 2, (0, 0)])
    y = 0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * dilation, j * dilation
            part = padded[:, top : top + x.shape[1], left : left + x.shape[2]]
            by_itself = kernel.shape[2] == 1 and x.shape[-1] > 1
            y = y + (part * kernel[i, j, 0] if by_itself else part @ kernel[i, j])
    return y


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


def features_by_hand(x):
    x = np.asarray(x, np.float64)
    x = np.concatenate([x, x**2, np.roll(x, 1, axis=1)], axis=-1)
    return x[:, ::2, ::2], x[:, ::4, ::4]


SIZES = pytest.mark.parametrize("size", [(16, 16), (19, 30)])


@SIZES
def test_resizing_agrees_with_a_loop_over_rows_and_columns(size):
    for small in ((5, 7), (1, 2), size):
        x = random_input(2, *small, 3)
        np.testing.assert_allclose(
            resize(x, size), resized_by_hand(np.asarray(x), size), rtol=1e-5, atol=1e-6
        )


@SIZES
def test_fcn_by_hand(size):
    net, x = FCN(num_classes=4, backbone=Thinned, features=6), random_input(2, *size, 3)
    variables = filled(net, x)
    assert set(variables["params"]) == {"hidden", "logits"}
    by_hand = ByHand(variables)
    _, last = features_by_hand(x)
    expected = by_hand.logits(by_hand.conv_norm(last, "hidden"), size)
    assert expected.std() > 0.1
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


@SIZES
def test_deeplab_by_hand(size):
    # At stride 4 the dilations are four times the rates; zero becomes the least one there is.
    net = DeepLabV3Plus(num_classes=4, backbone=Thinned, features=16, rates=(1, 0, 2))
    x = random_input(2, *size, 3)
    variables = filled(net, x)
    by_hand = ByHand(variables)
    first, last = features_by_hand(x)
    whole = by_hand.conv_norm(last.mean((1, 2), keepdims=True), "aspp", "pooled")
    branches = [
        by_hand.conv_norm(last, "aspp", "point"),
        by_hand.separable(last, "aspp", "atrous1", dilation=4),
        by_hand.separable(last, "aspp", "atrous2", dilation=1),
        by_hand.separable(last, "aspp", "atrous3", dilation=8),
        np.broadcast_to(whole, (*last.shape[:-1], 16)),
    ]
    y = by_hand.conv_norm(np.concatenate(branches, axis=-1), "aspp", "project")
    low = by_hand.conv_norm(first, "low_level")
    y = np.concatenate([resized_by_hand(y, first.shape[1:3]), low], axis=-1)
    y = by_hand.separable(by_hand.separable(y, "decoder1"), "decoder2")
    expected = by_hand.logits(y, size)
    assert expected.std() > 0.1
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


# Training


def train_step(net, x):
    return jax.jit(
        lambda variables, key: net.apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
    )


@BOTH
def test_gradients_reach_the_head_and_a_dynamic_backbone(head):
    conv = partial(ODConv, num_kernels=2)
    backbone = partial(ResNet, (1,), BasicBlock, num_classes=None, width=4, stem="small", conv=conv)
    net, x = head(num_classes=3, backbone=backbone), random_input(3, 12, 10, 3)
    variables = filled(net, x)
    weights = random_input(3, 12, 10, 3, seed=2)

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = net.apply(
                {**variables, "params": params},
                x,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return jnp.sum(weights * nn.log_softmax(logits))

        return jax.grad(loss)(params)

    leaves = jax.tree_util.tree_leaves_with_path(gradient(variables["params"]))
    assert {path[0].key for path, _ in leaves} >= {"backbone", "logits"}
    for path, leaf in leaves:
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-7, jax.tree_util.keystr(path)


def test_statistics_move_to_those_of_the_batch_in_training_only():
    net, x = FCN(num_classes=4, backbone=Thinned, features=6), random_input(2, 19, 30, 3)
    variables = filled(net, x)
    _, state = train_step(net, x)(variables, jax.random.key(0))
    _, last = features_by_hand(x)
    hidden = convolved_by_hand(last, variables["params"]["hidden"]["conv"]["kernel"])
    before, after = (
        variables["batch_stats"]["hidden"]["norm"],
        state["batch_stats"]["hidden"]["norm"],
    )
    for name, value in (("mean", hidden.mean((0, 1, 2))), ("var", hidden.var((0, 1, 2)))):
        np.testing.assert_allclose(
            after[name], 0.9 * before[name] + 0.1 * value, rtol=1e-4, atol=1e-5
        )
    # In inference nothing is mutable, so that no statistics could change.
    jax.eval_shape(net.apply, variables, x)


@BOTH
def test_all_statistics_of_the_backbone_and_the_head_move(head):
    net, x = head(num_classes=3, backbone=TinyFeatures), random_input(2, 8, 8, 3)
    variables = filled(net, x)
    _, state = train_step(net, x)(variables, jax.random.key(0))
    assert shapes_of(state["batch_stats"]) == shapes_of(variables["batch_stats"])
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state["batch_stats"], variables["batch_stats"]
    )
    assert "backbone" in moved and all(jax.tree.leaves(moved))


@BOTH
def test_drops_features_in_training_only(head):
    net, x = head(num_classes=4, backbone=Thinned, dropout=0.5), random_input(2, 16, 16, 3)
    variables = filled(net, x)
    step = train_step(net, x)
    one, other, again = (step(variables, jax.random.key(seed))[0] for seed in (1, 2, 1))
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(one, again)
    apply = jax.jit(net.apply)  # needs no rng
    np.testing.assert_array_equal(apply(variables, x), apply(variables, x))


@BOTH
def test_inference_sees_each_picture_by_itself(head):
    net, x = head(num_classes=4, backbone=Thinned), random_input(3, 17, 12, 3)
    variables = filled(net, x)
    apply = jax.jit(net.apply)
    together = apply(variables, x)
    np.testing.assert_allclose(apply(variables, x[1:2])[0], together[1], rtol=1e-4, atol=1e-5)


# dtypes


@BOTH
def test_computes_in_bfloat16_and_gives_logits_in_float32(head):
    """Under strict promotion: nothing is cast by accident."""
    net, x = head(num_classes=4, backbone=Thinned), random_input(2, 16, 16, 3)
    variables = filled(net, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    exact = jax.jit(net.apply)(variables, x)
    half = net.copy(dtype=jnp.bfloat16)
    apply = jax.jit(partial(half.apply, mutable=["intermediates"], capture_intermediates=True))
    logits, state = apply(variables, x)
    inside = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    for path, leaf in inside:
        keys = [key.key for key in path if hasattr(key, "key")]
        if "norm" not in keys and keys != [
            "__call__"
        ]:  # norms, and the logits of the whole network
            assert leaf.dtype == jnp.bfloat16, keys
    assert len(inside) > 4 and logits.dtype == jnp.float32
    # Numbers are rounded to 8 bits, 0.4 percent, in each of about ten steps.
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    step = jax.eval_shape(train_step(half, x), variables, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(step)} == {jnp.dtype(jnp.float32)}


def test_the_backbone_computes_in_the_head_s_dtype_or_in_its_own():
    def inside(**fields):
        x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
        own = fields.pop("own", {})
        net = FCN(num_classes=3, backbone=partial(TinyFeatures, **own), **fields)
        # flax's BatchNorm, which the backbone has, does not run in bfloat16 under strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            variables = jax.eval_shape(net.init, jax.random.key(0), x)
            _, state = jax.eval_shape(
                partial(net.apply, capture_intermediates=True, mutable=["intermediates"]),
                variables,
                x,
            )
        return state["intermediates"]["backbone"]["stem_conv"]["__call__"][0].dtype

    assert inside() == jnp.float32
    assert inside(dtype=jnp.bfloat16) == jnp.bfloat16
    assert inside(own={"dtype": jnp.bfloat16}) == jnp.bfloat16
