"""Residual networks: published sizes, contexts, features, and training."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import assert_learns, filled, init_shapes, random_input, shapes_of

from dyn.diagnostics import count_macs, count_parameters
from dyn.layers import DynamicConv, ODConv
from dyn.layers.kernel_representation import KernelRepresentation, append_state
from dyn.models import BasicBlock, Bottleneck, ResNet, ResNet18

TinyResNet = partial(
    ResNet, stage_sizes=(1, 1), block=BasicBlock, num_classes=3, width=4, stem="small"
)
ODConv2 = partial(ODConv, num_kernels=2, attention_norm="batch")


def picture(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def macs_at_224(net):
    return count_macs(net.apply, init_shapes(net, picture(1, 32, 32, 3)), picture(1, 224, 224, 3))


def test_static_resnet18_has_the_published_size():
    net = ResNet18(num_classes=1000)
    assert count_parameters(init_shapes(net, picture(1, 32, 32, 3))["params"]) == 11_689_512
    assert macs_at_224(net) == 1_814_073_344


def test_odconv_resnet18_has_the_published_size():
    """K = 4 adds one multiply-add for each of the 4 * 10,985,472 numbers of its block kernels.

    Attention adds a matrix product for each of its weight matrices: its 255,712 parameters without the
    biases and the norms' scales and biases.
    """
    net = ResNet18(num_classes=1000, conv=partial(ODConv, num_kernels=4, attention_norm="batch"))
    params = init_shapes(net, picture(1, 32, 32, 3))["params"]
    assert count_parameters(params) == 44_901_640
    attention = {p: s for p, s in shapes_of(params).items() if "/attention/" in p}
    assert sum(np.prod(shape) for shape in attention.values()) == 255_712
    matrices = sum(np.prod(s) for p, s in attention.items() if p.endswith("kernel") and len(s) == 2)
    assert 200_000 < matrices < 255_712
    assert macs_at_224(net) == 1_814_073_344 + 4 * 10_985_472 + matrices


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_dynamic_network_differs_only_in_block_convolutions(block):
    x = picture(2, 16, 16, 3)
    static = init_shapes(TinyResNet(block=block), x)
    dynamic = init_shapes(TinyResNet(block=block, conv=ODConv2), x)
    block_convolutions = {p for p in shapes_of(static["params"]) if "block1/conv" in p}
    assert len(block_convolutions) == (4 if block is BasicBlock else 6)
    for collection in ("params", "batch_stats"):
        ours, twins = shapes_of(dynamic[collection]), shapes_of(static[collection])
        outside = {p: s for p, s in ours.items() if "/attention/" not in p}
        assert outside.keys() == twins.keys()
        for path, shape in outside.items():
            assert shape == ((2, *twins[path]) if path in block_convolutions else twins[path])
        owners = {p.split("/attention/")[0] + "/kernel" for p in ours if "/attention/" in p}
        assert owners == block_convolutions
    assert set(dynamic) == {"params", "batch_stats", "attention"}
    assert set(static) == {"params", "batch_stats"}


def test_shortcuts_are_static_unless_requested():
    conv = partial(DynamicConv, num_kernels=2)
    for shortcut, shape in ((None, (1, 1, 4, 8)), (conv, (2, 1, 1, 4, 8))):
        params = init_shapes(TinyResNet(conv=conv, shortcut=shortcut), picture(1, 8, 8, 3))[
            "params"
        ]
        assert shapes_of(params)["stage2_block1/downsample_conv/kernel"] == shape


# Numbers; `test_torch_weights` compares whole networks with torch's.


def test_small_stem_and_head():
    net = ResNet((), BasicBlock, num_classes=3, width=4, stem="small", spatial_axes=1)
    x = random_input(2, 12, 2)
    variables = filled(net, x)
    params, statistics = variables["params"], variables["batch_stats"]["stem_norm"]
    y = nn.Conv(4, (3,), padding=1, use_bias=False).apply({"params": params["stem_conv"]}, x)
    norm = nn.BatchNorm(use_running_average=True, epsilon=1e-5)
    y = nn.relu(norm.apply({"params": params["stem_norm"], "batch_stats": statistics}, y))
    expected = y.mean(1) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


# Contexts


class Spy(nn.Module):
    """A convolution that sows its inputs."""

    features: int
    kernel_size: tuple
    strides: int = 1
    padding: int = 0
    use_bias: bool = False
    dtype: type = None

    @nn.compact
    def __call__(self, x, context=None):
        self.sow("intermediates", "input", x)
        self.sow("intermediates", "context", context)
        fields = {"strides": self.strides, "padding": self.padding}
        return nn.Conv(self.features, self.kernel_size, use_bias=False, **fields)(x)


def spied_inputs(net, x):
    """The inputs of each convolution by its path: {"stage1_block1/conv1": (x, context)}."""
    variables = filled(net, x)
    _, state = jax.jit(partial(net.apply, mutable=["intermediates"]))(variables, x)
    return variables, {
        f"{block}/{conv}": (sown["input"][0], sown["context"][0])
        for block, convs in state["intermediates"].items()
        if block.startswith("stage")
        for conv, sown in convs.items()
    }


def test_context_input_leaves_the_context_to_the_layer():
    net = TinyResNet(conv=Spy)
    apply = partial(net.apply, mutable=["intermediates"])
    x = picture(2, 8, 8, 3)
    _, state = jax.eval_shape(apply, init_shapes(net, x), x)
    assert state["intermediates"]["stage1_block1"]["conv2"]["context"] == (None,)


def test_context_block_is_the_mean_of_the_block_input():
    _, calls = spied_inputs(TinyResNet(conv=Spy, context="block"), random_input(2, 8, 8, 3))
    assert len(calls) == 4
    for path, (_, context) in calls.items():
        block_input, _ = calls[path[: path.index("/")] + "/conv1"]
        np.testing.assert_allclose(context, block_input.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("block", "context"), [(Bottleneck, "carried"), (BasicBlock, "carried_pixels")]
)
def test_carried_state_is_updated_before_each_convolution(block, context):
    net = TinyResNet(block=block, conv=Spy, context=context, representation=5)
    variables, calls = spied_inputs(net, random_input(2, 8, 8, 3))
    representation = KernelRepresentation(5)
    params, state = {"params": variables["params"]["representation"]}, None
    for path in sorted(calls):  # stage, block, conv: in the order of the names
        x, got = calls[path]
        state = representation.apply(params, x, state, layer=path.replace("/", "_"))
        want = state if context == "carried" else append_state(x, state)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# Features and output stride


@pytest.mark.parametrize(
    ("block", "output_stride", "sizes", "features"),
    [
        (BasicBlock, None, (16, 8, 4, 2), 64),
        (BasicBlock, 32, (16, 8, 4, 2), 64),
        (BasicBlock, 16, (16, 8, 4, 4), 64),
        (Bottleneck, 8, (16, 8, 8, 8), 256),
    ],
)
def test_without_a_classifier_it_returns_the_features_of_each_stage(
    block, output_stride, sizes, features
):
    make = partial(ResNet, (1, 1, 1, 1), block, width=8)
    x = picture(1, 64, 64, 3)
    net = make(num_classes=None, output_stride=output_stride)
    outputs, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert tuple(y.shape[1] for y in outputs) == sizes and outputs[-1].shape[-1] == features
    # Dilation changes no parameter: those of a trained classifier fit.
    classifier = init_shapes(make(num_classes=7), x)["params"]
    classifier.pop("head")
    assert shapes_of(variables["params"]) == shapes_of(classifier)


def test_dilated_stage_agrees_with_strided_stage():
    """At every second place a dilated stage returns what the strided one returns there.

    Only inside: the padding of a 3x3 kernel on the fine grid is not that on the coarse one.
    """
    x = random_input(1, 24, 24, 3)
    strided = TinyResNet(num_classes=None, stage_sizes=(1, 2))
    dilated = strided.copy(output_stride=1)
    variables = filled(strided, x)
    coarse, fine = jax.jit(lambda v: (strided.apply(v, x)[-1], dilated.apply(v, x)[-1]))(variables)
    assert coarse.shape == (1, 12, 12, 8) and fine.shape == (1, 24, 24, 8)
    fine = fine[:, ::2, ::2]
    np.testing.assert_allclose(fine[:, 4:-4, 4:-4], coarse[:, 4:-4, 4:-4], rtol=1e-4, atol=1e-4)


# Callers


@pytest.mark.parametrize("shape", [(2, 65, 2), (2, 33, 21, 3)])
def test_takes_series_and_pictures_of_odd_sizes(shape):
    for stem in ("imagenet", "small"):
        net = TinyResNet(conv=ODConv2, stem=stem, spatial_axes=len(shape) - 2)
        logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), picture(*shape))
        assert logits.shape == (2, 3) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"spatial_axes": 1}, (2, 8, 8, 3), r"spatial_axes=1; got shape \(2, 8, 8, 3\)"),
        ({}, (8, 8, 3), r"spatial_axes=2; got shape \(8, 8, 3\)"),
        ({"stem": "tiny"}, (2, 8, 8, 3), "'tiny' is unknown: write 'imagenet', 'deep' or 'small'"),
        ({"context": "carry"}, (2, 8, 8, 3), "'carry' is unknown: write 'input', 'block'"),
    ],
)
def test_errors_name_what_is_right(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        init_shapes(TinyResNet(**fields), picture(*shape))


def test_trains_with_carried_context_and_dropout():
    net = TinyResNet(stage_sizes=(1,), conv=ODConv2, context="carried", dropout=0.5)
    x = random_input(4, 8, 8, 3)
    variables = filled(net, x)

    @jax.jit
    def step(params, key):
        def loss(params):
            rngs, mutable = {"dropout": key}, ["batch_stats"]
            seen = {**variables, "params": params}
            logits, state = net.apply(seen, x, train=True, rngs=rngs, mutable=mutable)
            return jnp.sum(logits**2), (logits, state["batch_stats"])

        gradient, aux = jax.grad(loss, has_aux=True)(params)
        return gradient, *aux

    gradient, logits, statistics = step(variables["params"], jax.random.key(1))
    assert_learns(gradient)
    for old, new in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(statistics), strict=True
    ):
        assert old.shape == new.shape and (old != new).any()
    assert not np.allclose(logits, step(variables["params"], jax.random.key(2))[1])
    np.testing.assert_array_equal(logits, step(variables["params"], jax.random.key(1))[1])
    # In inference nothing is mutable and no rng is needed.
    jax.eval_shape(net.apply, variables, x)


def test_computes_in_bfloat16_with_parameters_in_float32():
    net = TinyResNet(stage_sizes=(1,), conv=ODConv2, dtype=jnp.bfloat16)
    x = random_input(2, 8, 8, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(init_shapes(net, x))} == {jnp.dtype(jnp.float32)}
    # Positive, so that the logits are not differences of nearly equal numbers.
    variables = jax.tree.map(np.abs, filled(net, x))

    @jax.jit
    def compute(variables):
        logits, state = net.apply(
            variables, x, mutable=["intermediates"], capture_intermediates=True
        )
        inner = state["intermediates"]["stage1_block1"]["conv1"]["__call__"][0]
        return logits, inner, net.copy(dtype=None).apply(variables, x)

    # flax's BatchNorm does not run in bfloat16 under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        logits, inner, exact = compute(variables)
    assert (logits.dtype, inner.dtype, exact.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # Numbers are rounded to 8 bits, 0.4 percent, in each of about ten steps.
    np.testing.assert_allclose(logits.astype(jnp.float32), exact, rtol=0.05)
