"""Gradients and train steps, compiled for a batch that is sharded over a number of devices.

As a program, on eight devices, it prints a report on every layer compiled for one, four and eight of them.
Its argument is the type of the mesh's axes.
"""

import json
import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layer_cases import LAYERS, Case, init_shapes

from dyn.layers import Conv, LightweightConv, ODConv, PartialFrequencyDynamicConv
from dyn.models import BasicBlock, ResNet

BATCH = 8
CASES = {
    "Conv": (Case(Conv), {}),
    **{name: (case, {}) for name, case in LAYERS.items()},
    "LightweightConv": (Case(LightweightConv, looks_at=None), {}),
    "PartialFrequencyDynamicConv": (
        Case(partial(PartialFrequencyDynamicConv, num_kernels=2, branches=(None, (1, 2)))),
        {},
    ),
    # A fixed number of gates is chosen by sorting.
    "GatedConv, three kernels": (LAYERS["GatedConv, kernels"], {"active": 3}),
}


# Axis types of a mesh: JAX's default, and that of older programs.
AXIS_TYPES = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}


def make_mesh(shape, axes):
    """Returns a mesh over the first devices with the axes 'data' and 'model', or 'data' alone.

    Args:
        shape: number of devices along each axis.
        axes: 'explicit', 'auto', or for two axes also 'explicit, auto' and 'auto, explicit'.
    """
    types = [AXIS_TYPES[name] for name in axes.split(", ")]
    types = tuple(types * len(shape) if len(types) == 1 else types)
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=types, devices=devices)


def shardings(devices=4, axes="auto"):
    """Returns two shardings: replicated on all devices, and split along the first axis."""
    mesh = make_mesh((devices,), axes)
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def layer_gradient(name, devices, shape=None, axes="auto"):
    """Compiles a layer's gradient in training with respect to parameters and inputs."""
    (case, fields), (replicated, batch) = CASES[name], shardings(devices, axes)
    layer = case.layer(**fields)
    x = jax.ShapeDtypeStruct(shape or (BATCH, *case.shape[1:]), jnp.float32)

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
    return step.lower(params, others, x).compile()


def train_step_text(conv, block=BasicBlock, stage_sizes=(1, 1), devices=4, axes="auto"):
    """Returns the compiled text of a train step of a tiny ResNet with a sharded batch."""
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

    replicated, batch = shardings(devices, axes)
    step = jax.jit(
        train_step,
        in_shardings=(replicated, batch, batch),
        out_shardings=(replicated, replicated),
    )
    return step.lower(variables, x, y).compile().as_text()


def gathers(text):
    """Returns the lines of a compiled text in which a device receives samples of another."""
    collectives = ("all-gather", "all-to-all", "collective-permute")
    return [line for line in text.splitlines() if any(name in line for name in collectives)]


def large(name):
    """Returns the shape of an input much larger than the parameters, whose work all devices repeat."""
    shape = CASES[name][0].shape
    return (256 if len(shape) > 2 else 8192, *(32,) * (len(shape) - 2), shape[-1])


def report(axes):
    """Returns for each layer the FLOPs per device by number of devices, and the lines that gather."""
    results = {}
    for name in CASES:
        compiled = {n: layer_gradient(name, n, large(name), axes) for n in (1, 4, 8)}
        results[name] = {
            "flops": {n: step.cost_analysis()["flops"] for n, step in compiled.items()},
            "reduces": [n for n, step in compiled.items() if "all-reduce" in step.as_text()],
            "gathers": [line for step in compiled.values() for line in gathers(step.as_text())],
        }
    conv = partial(ODConv, num_kernels=4, attention_norm="batch")
    text = train_step_text(conv, devices=8, axes=axes)
    results["network"] = {"reduces": "all-reduce" in text, "gathers": gathers(text)}
    return results


if __name__ == "__main__":
    print(json.dumps(report(sys.argv[1])))
