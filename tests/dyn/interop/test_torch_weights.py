"""Torch's networks and ours have the same logits; everything that does not fit is listed at once."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from layer_cases import init_shapes
from torch_networks import assert_torchs_logits, network, variable_shapes, weights_of
from torch_numbers import pictures

from dyn.interop import from_torch
from dyn.interop.torch_weights import detect_source, num_classes
from dyn.layers import CondConv, ODConv
from dyn.models import BasicBlock, ResNet


def test_odconv_bottlenecks_have_torchs_logits():
    weights, net = weights_of("odconv50"), network("odconv50")
    assert detect_source(weights) == "odconv" and num_classes(weights) == 5
    variables, left_out, kept = from_torch(variable_shapes(net), weights)
    assert left_out == tuple(key for key in weights if key.endswith("num_batches_tracked"))
    assert kept == ()
    assert_torchs_logits(jax.jit(net.apply)(variables, pictures()), "odconv50")


PREFIXED = {
    "several devices": "module.{}".format,
    "compiled": "_orig_mod.{}".format,
    "both": "module._orig_mod.{}".format,
    "an average of both": "module._orig_mod.module.{}".format,
    "parts compiled": lambda key: key.replace("1.0.", "1.0._orig_mod.", 1),
}


@pytest.mark.parametrize("rename", PREFIXED.values(), ids=PREFIXED)
def test_prefixes_of_devices_compilation_and_averages_are_ignored(rename):
    weights = weights_of("seresnet")
    prefixed = {rename(key): value for key, value in weights.items()}
    assert prefixed.keys() != weights.keys() and detect_source(prefixed) == "torchvision"
    shapes = variable_shapes(network("seresnet"))
    prefixed["n_averaged"] = np.int64(3)
    both = [from_torch(shapes, w) for w in (weights, prefixed)]
    assert both[1].left_out[-1] == "n_averaged"
    jax.tree.map(np.testing.assert_array_equal, *(made.variables for made in both))


def test_layers_in_without_keep_their_values():
    shapes = variable_shapes(network("seresnet", num_classes=3))
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), shapes)
    variables, left_out, kept = from_torch(fresh, weights_of("seresnet"), without=("head",))
    assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} <= set(left_out)
    assert kept == ("params/head/bias", "params/head/kernel")
    assert (variables["params"]["head"]["kernel"] == 7).all()
    assert not (variables["params"]["stem_conv"]["kernel"] == 7).any()


def test_everything_that_does_not_fit_is_listed_at_once():
    weights = weights_of("seresnet")
    weights["layer1.0.conv3.weight"] = np.zeros((8, 8, 1, 1))
    weights["layer2.0.bn1.weight"] = np.zeros(7)
    weights["fc.weight"] = weights["fc.weight"].T
    del weights["conv1.weight"], weights["layer2.0.bn2.running_var"]
    with pytest.raises(ValueError) as raised:
        from_torch(variable_shapes(network("seresnet")), weights)
    for part in (
        "2 of another shape: layer2.0.bn1.weight (7,) for params/stage2_block1/norm1/scale (16,), "
        "fc.weight (16, 5) for params/head/kernel (16, 5);",
        "1 without a counterpart in the network: layer1.0.conv3.weight (8, 8, 1, 1);",
        "2 missing for parameters of the network: ",
        "params/stem_conv/kernel (7, 7, 3, 8)",
        "batch_stats/stage2_block1/norm2/var (16,)",
    ):
        assert part in str(raised.value)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="missing"):
        from_torch(variable_shapes(network("odconv50")), weights_of("seresnet"))
    with pytest.raises(ValueError, match="of another shape"):
        from_torch(variable_shapes(network("seresnet", stem="small")), weights_of("seresnet"))


def test_static_weights_of_a_dynamic_network_point_to_a_warm_start():
    static = {key: value for key, value in weights_of("odconv50").items() if "attention" not in key}
    with pytest.raises(ValueError, match=r"missing .*warm_start"):
        from_torch(variable_shapes(network("odconv50")), static)
    del static["conv1.weight"]
    for net, weights in (
        ("seresnet", weights_of("odconv50")),
        ("odconv50", weights_of("seresnet")),
    ):
        weights.pop("fc.weight")
        with pytest.raises(ValueError, match="missing") as raised:
            from_torch(variable_shapes(network(net)), weights)
        assert ("warm_start" in str(raised.value)) == (net == "odconv50")


def test_weights_of_an_unknown_network_say_what_differs():
    weights = {f"blocks.{n}.attn.qkv.weight": np.zeros((12, 4)) for n in range(30)}
    with pytest.raises(
        ValueError, match=r"30 of 30 names .* blocks\.0\.attn\.qkv\.weight \(12, 4\)"
    ) as raised:
        from_torch(variable_shapes(network("seresnet")), weights)
    assert "params/" in str(raised.value) and len(str(raised.value)) < 800


def test_weights_that_are_there_twice_are_refused():
    """A checkpoint that holds a network and its compiled self: prefixes are ignored, so names collide."""
    weights = weights_of("seresnet")
    weights["_orig_mod.conv1.weight"] = weights["conv1.weight"] + 1
    with pytest.raises(ValueError, match=r"1 for what other weights .* _orig_mod\.conv1\.weight"):
        from_torch(variable_shapes(network("seresnet")), weights)


def test_complex_weights_are_no_real_ones():
    weights = weights_of("seresnet")
    weights["conv1.weight"] = weights["conv1.weight"].astype(np.complex64)
    with pytest.raises(ValueError, match=r"conv1\.weight of complex64"):
        from_torch(variable_shapes(network("seresnet")), weights)


def test_other_tables_serve_other_networks():
    table = [(r"stem\.0", "stem_conv"), (r"stem\.1", "stem_norm"), (r"out", "head")]
    torchs = weights_of("seresnet")
    norm = ("weight", "bias", "running_mean", "running_var")
    weights = {f"stem.1.{leaf}": torchs[f"bn1.{leaf}"] for leaf in norm}
    weights |= {"stem.0.weight": torchs["conv1.weight"]}
    weights |= {"out.weight": np.ones((5, 8)), "out.bias": np.zeros(5)}
    net = ResNet((), BasicBlock, num_classes=5, width=8)
    kernel = from_torch(variable_shapes(net), weights, table).variables["params"]["stem_conv"]
    np.testing.assert_array_equal(kernel["kernel"], torchs["conv1.weight"].transpose(2, 3, 1, 0))


KERNELS = {
    "1-D": (nn.Conv(6, (3,)), (6, 2, 3), (2, 1, 0)),
    "3-D": (nn.Conv(6, (3, 3, 3)), (6, 2, 3, 3, 3), (2, 3, 4, 1, 0)),
    "3-D, all sizes equal": (nn.Conv(3, (3, 3, 3)), (3, 3, 3, 3, 3), (2, 3, 4, 1, 0)),
    "2-D, all sizes equal": (nn.Conv(3, (3, 3)), (3, 3, 3, 3), (2, 3, 1, 0)),
    "1-D candidates": (ODConv(6, (3,), num_kernels=4), (4, 6, 2, 3), (0, 3, 2, 1)),
    "as many candidates as features": (ODConv(4, (3,), num_kernels=4), (4, 4, 4, 3), (0, 3, 2, 1)),
    "1-D, all sizes equal": (CondConv(3, (3,), num_kernels=3), (3, 3, 3, 3), (0, 3, 2, 1)),
    "2-D candidates, all sizes equal": (
        CondConv(3, (3, 3), num_kernels=3),
        (3, 3, 3, 3, 3),
        (0, 3, 4, 2, 1),
    ),
    "3-D candidates": (
        ODConv(6, (3, 3, 3), num_kernels=4),
        (4, 6, 2, 3, 3, 3),
        (0, 3, 4, 5, 2, 1),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_have_any_number_of_axes(name):
    layer, torch_shape, order = KERNELS[name]
    value = np.random.default_rng(0).standard_normal(torch_shape).astype(np.float32)
    axes = len(layer.kernel_size)
    x = jax.ShapeDtypeStruct((1, *(5,) * axes, torch_shape[-axes - 1]), np.float32)
    others = ("layers_0/attention", "layers_0/routing", "layers_0/bias")
    shapes = init_shapes(nn.Sequential([layer]), x)
    made = from_torch(shapes, {"0.weight": value}, [("0", "layers_0")], without=others)
    kernel = made.variables["params"]["layers_0"]["kernel"]
    np.testing.assert_array_equal(kernel, value.transpose(order))
    with pytest.raises(ValueError, match="of another shape"):
        from_torch(shapes, {"0.weight": value[:-1]}, [("0", "layers_0")], without=others)


def test_a_kernel_that_has_the_shape_here_is_not_taken_as_it_is():
    net = nn.Sequential([nn.Conv(6, (3, 3))])
    shapes = init_shapes(net, jax.ShapeDtypeStruct((1, 5, 5, 4), np.float32))
    weights = {"0.weight": np.ones((3, 3, 4, 6)), "0.bias": np.ones(6)}
    with pytest.raises(ValueError, match="of another shape"):
        from_torch(shapes, weights, [("0", "layers_0")])
