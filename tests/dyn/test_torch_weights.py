"""Torch's networks and ours give the same logits; what does not fit is named, all of it at once."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from torch_numbers import pictures, weight

from dyn.interop import from_torch, warm_start
from dyn.interop.torch_weights import num_classes, source_of
from dyn.layers import CondConv, DCDConv, DCDDense, ODConv, SqueezeExcite
from dyn.models import (
    VGG16,
    BasicBlock,
    Bottleneck,
    MobileNetV2,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
)

REFERENCES = json.loads(Path(__file__).with_name("torch_references.json").read_text())
Small = partial(ResNet, (1, 1))
NETWORKS = {
    "resnet18": ("torchvision", ResNet18),
    "resnet34": ("torchvision", ResNet34),
    "resnet50": ("torchvision", ResNet50),
    "seresnet": (
        "torchvision",
        partial(Small, BasicBlock, attention=partial(SqueezeExcite, min_squeeze=8)),
    ),
    "odconv18": ("odconv", partial(ResNet18, conv=partial(ODConv, num_kernels=4))),
    "odconv50": ("odconv", partial(Small, Bottleneck, conv=partial(ODConv, num_kernels=4))),
    "odconv50, K = 1": ("odconv", partial(Small, Bottleneck, conv=partial(ODConv, num_kernels=1))),
    "condconv": (
        "condconv",
        partial(Small, BasicBlock, conv=partial(CondConv, num_kernels=3), context="block"),
    ),
    "dcd": ("dcd", partial(Small, BasicBlock, conv=DCDConv, dense=DCDDense)),
    "vgg16": ("vgg16", VGG16),
    "mobilenet_v2": (
        "mobilenet_v2",
        lambda width, **fields: MobileNetV2(width=width / 64, **fields),
    ),
}


def weights_of(name):
    shapes = REFERENCES[name]["shapes"]
    return {key: weight(key, shape) for key, shape in shapes.items()}


def network(name, **fields):
    return NETWORKS[name][1](**{"num_classes": 5, "width": 8} | fields)


def shapes_of(net):
    x = jax.ShapeDtypeStruct((2, 44, 36, 3), jnp.float32)
    made = jax.eval_shape(net.init, jax.random.key(0), x)
    return {name: made.get(name, {}) for name in ("params", "batch_stats")}


def assert_torchs_logits(logits, name):
    np.testing.assert_allclose(logits, REFERENCES[name]["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_gives_torchs_logits(name):
    weights, net = weights_of(name), network(name)
    assert source_of(weights) == NETWORKS[name][0] and num_classes(weights) == 5
    variables, left_out, kept = from_torch(shapes_of(net), weights)
    assert left_out == tuple(key for key in weights if key.endswith("num_batches_tracked"))
    assert kept == ()
    assert_torchs_logits(jax.jit(net.apply)(variables, pictures()), name)


def test_the_comparison_would_notice_a_layout_that_is_wrong():
    """Kernels and matrices the other way round, norms' scales and variances exchanged."""
    net = network("odconv50")
    variables = from_torch(shapes_of(net), weights_of("odconv50")).variables
    apply = jax.jit(net.apply)
    flat = traverse_util.flatten_dict(variables, sep="/")
    block = "params/stage2_block1"
    wrong = {
        "taps": {f"{block}/conv2/kernel": lambda a: a.swapaxes(1, 2)},
        "candidates": {f"{block}/conv2/kernel": lambda a: a[::-1]},
        "features": {f"{block}/conv2/kernel": lambda a: a.swapaxes(3, 4)},
        "positions": {f"{block}/conv2/attention/spatial/bias": lambda a: a[::-1]},
        "a norm": {f"{block}/norm2/scale": lambda a: a[::-1]},
        "statistics": {"batch_stats/stage2_block1/norm2/var": lambda a: a[::-1]},
    }
    for what, changes in wrong.items():
        changed = {
            **flat,
            **{path: jnp.asarray(turn(flat[path])) for path, turn in changes.items()},
        }
        logits = apply(traverse_util.unflatten_dict(changed, sep="/"), pictures())
        assert np.abs(logits - np.asarray(REFERENCES["odconv50"]["logits"])).max() > 5e-4, what


def test_a_dynamic_network_starts_with_the_logits_of_torchs_static_one():
    twin = from_torch(shapes_of(network("seresnet")), weights_of("seresnet")).variables
    net = network("seresnet", conv=partial(ODConv, num_kernels=2))
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes_of(net))
    variables = warm_start(fresh, twin, key=jax.random.key(1))
    assert_torchs_logits(jax.jit(net.apply)(variables, pictures()), "seresnet")


def test_names_of_a_network_on_several_devices_are_understood():
    weights = {f"module.{key}": value for key, value in weights_of("odconv50").items()}
    assert source_of(weights) == "odconv"
    plain = from_torch(shapes_of(network("odconv50")), weights_of("odconv50")).variables
    both = from_torch(shapes_of(network("odconv50")), weights).variables, plain
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *both)))


def test_a_head_of_other_classes_is_left_as_it_was_when_asked_and_that_is_said():
    net = network("resnet18", num_classes=3)
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), shapes_of(net))
    with pytest.raises(ValueError, match=r"fc\.weight \(5, 64\) for params/head/kernel \(64, 3\)"):
        from_torch(fresh, weights_of("resnet18"))
    variables, left_out, kept = from_torch(fresh, weights_of("resnet18"), without=("head",))
    assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} <= set(left_out)
    assert kept == ("params/head/bias", "params/head/kernel")
    assert (variables["params"]["head"]["kernel"] == 7).all()
    assert not (variables["params"]["stem_conv"]["kernel"] == 7).any()


def test_everything_that_does_not_fit_is_named_at_once():
    weights = weights_of("resnet18")
    weights["layer1.0.conv3.weight"] = np.zeros((8, 8, 1, 1))
    weights["head.weight"] = np.zeros((5, 64))
    weights["layer2.0.bn1.weight"] = np.zeros(7)
    weights["fc.weight"] = weights["fc.weight"].T
    del weights["conv1.weight"], weights["layer4.1.bn2.running_var"]
    with pytest.raises(ValueError) as raised:
        from_torch(shapes_of(network("resnet18")), weights)
    assert str(raised.value) == (
        "the weights do not fit the network: 2 of another shape: layer2.0.bn1.weight (7,) for "
        "params/stage2_block1/norm1/scale (16,), fc.weight (64, 5) for params/head/kernel (64, 5); "
        "2 without a place in the network: layer1.0.conv3.weight (8, 8, 1, 1), head.weight (5, 64); "
        "2 parameters that get nothing: params/stem_conv/kernel (7, 7, 3, 8), "
        "batch_stats/stage4_block2/norm2/var (64,)."
    )


def test_weights_of_another_network_are_refused():
    for name, other in (("resnet18", "resnet34"), ("odconv18", "resnet18"), ("dcd", "condconv")):
        with pytest.raises(ValueError, match=r"\d+ (parameters that get nothing|without a place)"):
            from_torch(shapes_of(network(name)), weights_of(other))
    with pytest.raises(ValueError, match="of another shape"):
        from_torch(shapes_of(network("resnet18", stem="small")), weights_of("resnet18"))


def test_a_table_of_ones_own_serves_other_networks():
    rows = [(r"stem\.0", "stem_conv"), (r"stem\.1", "stem_norm"), (r"out", "head")]
    net = ResNet((), BasicBlock, num_classes=5, width=8)
    found = weights_of("resnet18")
    names = {"conv1": "stem.0", "bn1": "stem.1"}
    weights = {
        f"{names[layer]}.{leaf}": value
        for (layer, _, leaf), value in ((key.rpartition("."), v) for key, v in found.items())
        if layer in names
    }
    weights |= {"out.weight": np.ones((5, 8)), "out.bias": np.zeros(5)}
    variables = from_torch(shapes_of(net), weights, rows).variables
    kernel = variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(kernel, found["conv1.weight"].transpose(2, 3, 1, 0))
