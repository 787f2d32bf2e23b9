"""A train step over a sharded batch gathers nothing: no device ever needs another's samples."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layer_cases import LAYERS, init_shapes

from dyn.layers import ODConv
from dyn.models import BasicBlock, Bottleneck, ResNet
from dyn.ops import dynamic_conv, explain

BATCH = 8


def shardings():
    """(the same on all of four devices, its first axis shared out among them)"""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def train_step_text(conv, block=BasicBlock, stage_sizes=(1, 1)):
    """The compiled text of a train step of a tiny ResNet, its batch sharded over four devices."""
    net = ResNet(stage_sizes, block, num_classes=3, width=8, stem="small", conv=conv)
    x = jax.ShapeDtypeStruct((BATCH, 16, 16, 3), jnp.float32)
    y = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)

    def train_step(variables, x, y):
        def loss(params):
            logits, state = net.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            picked = jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, 3), axis=-1)
            return -jnp.mean(picked), state

        params = variables["params"]
        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        return {**variables, **state, "params": params}, value

    replicated, batch = shardings()
    step = jax.jit(
        train_step,
        in_shardings=(replicated, batch, batch),
        out_shardings=(replicated, replicated),
    )
    return step.lower(variables, x, y).compile().as_text()


def gathers(text):
    """The lines of a compiled text in which a device gets samples of another."""
    collectives = ("all-gather", "all-to-all", "collective-permute")
    return [line for line in text.splitlines() if any(name in line for name in collectives)]


@pytest.mark.parametrize("num_kernels", [1, 4])
def test_a_train_step_gathers_nothing(num_kernels):
    text = train_step_text(partial(ODConv, num_kernels=num_kernels))
    assert "all-reduce" in text  # of gradients and statistics: the batch is sharded indeed
    assert not gathers(text)


@pytest.mark.parametrize(
    ("name", "fields"),
    # A fixed number of gates is found by sorting.
    [*((name, {}) for name in LAYERS), ("GatedConv, kernels", dict(active=3))],
)
def test_the_gradient_of_no_layer_gathers_anything(name, fields):
    """In training, towards parameters and inputs, with the lowering that the layer takes by itself."""
    case, (replicated, batch) = LAYERS[name], shardings()
    layer, x = case.layer(**fields), jax.ShapeDtypeStruct((BATCH, *case.shape[1:]), jnp.float32)

    def gradient(params, others, x):
        def loss(params, x):
            y, state = layer.apply({"params": params, **others}, x, mutable=["batch_stats"])
            return jnp.sum(y**3), state

        (value, state), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return value, state, *gradient

    others = init_shapes(layer, x)
    params = others.pop("params")
    step = jax.jit(
        gradient,
        in_shardings=(replicated, replicated, batch),
        out_shardings=(replicated, replicated, replicated, batch),
    )
    text = step.lower(params, others, x).compile().as_text()
    assert "all-reduce" in text
    assert not gathers(text)


# One block, with a strided convolution and one that is not: enough for one lowering, and quicker.
ONE_BLOCK = (0, 1)


@pytest.mark.parametrize("lowering", ["taps", "patches", "shared"])
def test_what_auto_may_choose_gathers_nothing(lowering):
    conv = partial(ODConv, num_kernels=4, lowering=lowering)
    text = train_step_text(conv, stage_sizes=ONE_BLOCK)
    assert "all-reduce" in text
    assert not gathers(text)


def test_mixing_outputs_gathers_nothing():
    """`outputs` cannot do tap attention, so it is compiled for the 1x1 convolutions of a bottleneck."""

    def conv(features, kernel_size, strides, **fields):
        lowering = "outputs" if set(kernel_size) == {1} else "shared"
        return ODConv(features, kernel_size, strides, num_kernels=4, lowering=lowering, **fields)

    text = train_step_text(conv, Bottleneck, ONE_BLOCK)
    assert "all-reduce" in text
    assert not gathers(text)


def test_the_reference_does_gather():
    """The control: what the other tests look for is there when a lowering gathers."""
    conv = partial(ODConv, num_kernels=4, lowering="reference")
    text = train_step_text(conv, stage_sizes=ONE_BLOCK)
    assert any("all-gather" in line for line in gathers(text))


def test_a_loop_over_samples_gathers_and_so_auto_leaves_it_alone_here(capsys):
    x, w = jnp.ones((BATCH, 4, 4, 2)), jnp.ones((2, 3, 3, 2, 2))
    mix = jnp.ones((BATCH, 2))
    x, mix = jax.device_put((x, mix), shardings()[1])
    looped = jax.jit(partial(dynamic_conv, lowering="samples"))
    assert gathers(looped.lower(x, w, mix).compile().as_text())
    explain(x, w, mix, platform="cpu")
    assert "gathers a batch that is sharded" in capsys.readouterr().out
