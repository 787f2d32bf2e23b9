"""What a ResNet hands to its convolutions, and what it gives to a head of one's own."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import filled, random_input, shapes_of

from dyn.layers import CondConv, DynamicConv, ODConv, PixelDynamicConv
from dyn.models import ResNet, ResNet18, ResNet50
from dyn.models.resnet import BasicBlock, Bottleneck


def tiny(block=BasicBlock, **fields):
    fields = {"num_classes": 3, "width": 4, "stem": "small", **fields}
    return ResNet(stage_sizes=(1, 2), block=block, **fields)


class Spy(nn.Module):
    """A convolution that sows what it is called with."""

    features: int
    kernel_size: tuple
    strides: int = 1
    padding: int = 0
    kernel_dilation: int = 1
    use_bias: bool = False
    dtype: type = None

    @nn.compact
    def __call__(self, x, context=None):
        self.sow("intermediates", "input", x)
        self.sow("intermediates", "context", context)
        fields = {name: getattr(self, name) for name in ("strides", "padding", "kernel_dilation")}
        return nn.Conv(self.features, self.kernel_size, use_bias=False, **fields)(x)


def seen(net, x):
    """What each convolution was called with, by its path: {"stage1_block1/conv1": (input, context)}."""
    variables = filled(net, x)
    _, state = jax.jit(partial(net.apply, mutable=["intermediates"]))(variables, x)
    return variables, {
        f"{block}/{conv}": (sown["input"][0], sown["context"][0])
        for block, convs in state["intermediates"].items()
        if block.startswith("stage")
        for conv, sown in convs.items()
    }


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_by_itself_a_layer_is_given_its_input_alone(block):
    _, calls = seen(tiny(block, conv=Spy), random_input(2, 8, 8, 3))
    assert len(calls) == 3 * (2 if block is BasicBlock else 3)
    assert all(context is None for _, context in calls.values())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_the_mean_of_a_block_s_input_is_for_all_its_convolutions(block):
    _, calls = seen(tiny(block, conv=Spy, context="block"), random_input(2, 8, 8, 3))
    for path, (_, context) in calls.items():
        first, _ = calls[path[: path.index("/")] + "/conv1"]
        np.testing.assert_allclose(context, first.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("context", ["carried", "carried_pixels"])
def test_a_state_is_carried_from_convolution_to_convolution(block, context):
    """Every state is the one before, moved by what the convolution is about to see."""
    net = tiny(block, conv=Spy, context=context, representation=5)
    variables, calls = seen(net, random_input(2, 8, 8, 3))
    params = jax.tree.map(np.asarray, variables["params"]["representation"])
    state = np.broadcast_to(params["initial"], (2, 5))
    for path in sorted(calls):  # stage, block, conv: in the order of the names
        x, given = calls[path]
        contribution = params["contribution_" + path.replace("/", "_")]["kernel"]
        history = (state - state.mean(-1, keepdims=True)) / np.sqrt(
            state.var(-1, keepdims=True) + 1e-5
        )
        history = history * params["norm"]["scale"] + params["norm"]["bias"]
        z = np.concatenate([history, np.asarray(x).mean((1, 2)) @ contribution], axis=-1)
        z = np.maximum(z @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
        state = state + z @ params["update"]["kernel"] + params["update"]["bias"]
        if context == "carried":
            np.testing.assert_allclose(given, state, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(given[..., :-5], x)
            at_each = np.broadcast_to(state[:, None, None], (*x.shape[:-1], 5))
            np.testing.assert_allclose(given[..., -5:], at_each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("conv", "context"),
    [
        (partial(CondConv, num_kernels=2), "block"),
        (partial(ODConv, num_kernels=2), "carried"),
        (partial(PixelDynamicConv, num_kernels=2), "carried_pixels"),
    ],
)
def test_a_network_with_context_trains(conv, context):
    net, x = tiny(conv=conv, context=context), random_input(3, 8, 8, 3)
    variables = filled(net, x)

    @jax.jit
    def gradient(params):
        def loss(params):
            variables_ = {**variables, "params": params}
            return jnp.sum(net.apply(variables_, x, train=True, mutable=["batch_stats"])[0] ** 2)

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_an_unknown_context_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="context='carry' is unknown: write 'input', 'block'"):
        jax.eval_shape(tiny(context="carry").init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))


def test_shortcuts_are_static_unless_they_are_given_a_convolution():
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    conv = partial(DynamicConv, num_kernels=2)

    def projections(**fields):
        net = ResNet18(num_classes=3, width=8, conv=conv, **fields)
        shapes = shapes_of(jax.eval_shape(net.init, jax.random.key(0), x)["params"])
        return {shape for path, shape in shapes.items() if path.endswith("downsample_conv/kernel")}

    assert projections() == {(1, 1, 8, 16), (1, 1, 16, 32), (1, 1, 32, 64)}
    assert projections(shortcut=conv) == {(2, 1, 1, 8, 16), (2, 1, 1, 16, 32), (2, 1, 1, 32, 64)}


@pytest.mark.parametrize(
    ("network", "output_stride", "sizes", "features"),
    [
        (ResNet18, None, (16, 8, 4, 2), 512),
        (ResNet18, 32, (16, 8, 4, 2), 512),
        (ResNet18, 16, (16, 8, 4, 4), 512),
        (ResNet50, 8, (16, 8, 8, 8), 2048),
    ],
)
def test_without_a_classifier_it_gives_the_features_of_each_stage(
    network, output_stride, sizes, features
):
    net = network(num_classes=None, output_stride=output_stride)
    x = jnp.ones((1, 64, 64, 3))
    outputs, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert tuple(y.shape[1] for y in outputs) == sizes and outputs[-1].shape[-1] == features
    assert "head" not in variables["params"]
    # Dilation changes no parameter: a trained classifier's fit.
    classifier = jax.eval_shape(network(num_classes=7).init, jax.random.key(0), x)["params"]
    classifier.pop("head")
    assert shapes_of(variables["params"]) == shapes_of(classifier)


def test_dilated_stages_see_what_strided_ones_see_at_every_place():
    """At every second place a dilated stage gives what the strided one gives there.

    Its kernels are dilated where the strided stage's lie on the thinned grid. Only inside: the padding
    of a 3x3 kernel on the fine grid is not that on the thinned one.
    """
    x = random_input(1, 24, 24, 3)
    strided, dilated = tiny(num_classes=None), tiny(num_classes=None, output_stride=1)
    variables = filled(strided, x)
    coarse = jax.jit(strided.apply)(variables, x)[-1]
    fine = jax.jit(dilated.apply)(variables, x)[-1]
    assert coarse.shape == (1, 12, 12, 8) and fine.shape == (1, 24, 24, 8)
    np.testing.assert_allclose(
        fine[:, ::2, ::2][:, 4:-4, 4:-4], coarse[:, 4:-4, 4:-4], rtol=1e-4, atol=1e-4
    )
