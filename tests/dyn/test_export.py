"""Layers that go out of this library: one file for any batch on any platform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import CONVOLUTIONS, LAYERS, Case, filled, random_input

from dyn.interop import to_stablehlo
from dyn.layers import Conv
from dyn.models import FCN, BasicBlock, Net2, ResNet
from dyn.ops import LOWERINGS, dynamic_conv, planner

BATCHES = (1, 3, 32)


def example_of(x):
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)


def assert_same_at_any_batch(function, x, platforms=("cpu", "cuda", "tpu")):
    written = jax.export.deserialize(bytearray(to_stablehlo(function, example_of(x), platforms)))
    assert written.platforms == platforms
    compiled = jax.jit(function)
    for batch in BATCHES:
        got, want = written.call(x[:batch]), compiled(x[:batch])
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("name", ["Conv", *LAYERS])
def test_every_layer_goes_out_with_any_batch(name):
    case = Case(Conv, looks_at=None) if name == "Conv" else LAYERS[name]
    x = random_input(32, *case.shape[1:])
    layer = case.layer()
    assert_same_at_any_batch(partial(layer.apply, filled(layer, x)), x)


@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("lowering", [name for name in LOWERINGS if name != "reference"])
def test_every_lowering_takes_a_batch_of_unknown_size(lowering, groups):
    x, w = random_input(32, 5, 4, 4), random_input(3, 3, 3, 4 // groups, 6, seed=2)
    mixes = random_input(32, 3, seed=3)
    taps = None if lowering == "outputs" else random_input(32, 3, 3, seed=4)

    def convolve(both):
        x, mix, taps = both[0], both[1], both[2] if len(both) > 2 else None
        return dynamic_conv(x, w, mix, taps=taps, lowering=lowering, feature_group_count=groups)

    (batch,) = jax.export.symbolic_shape("batch")
    given = [a for a in (x, mixes, taps) if a is not None]
    shapes = [jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in given]
    written = jax.export.export(jax.jit(convolve))(shapes)
    for number in BATCHES:
        few = [a[:number] for a in given]
        np.testing.assert_allclose(written.call(few), convolve(few), rtol=1e-5, atol=1e-5)


def test_on_a_single_platform_it_is_planned_for_that_one(monkeypatch):
    planned = []
    plan = planner.plan

    def noticed(*args, **kwargs):
        planned.append(plan(*args, **kwargs))
        return planned[-1]

    monkeypatch.setattr(planner, "plan", noticed)
    layer, x = CONVOLUTIONS["ODConv"].layer(), random_input(2, 6, 5, 4)
    function = partial(layer.apply, filled(layer, x))
    for platforms, expected in [(("cuda",), "gpu"), (("cpu",), "cpu"), (("cpu", "cuda"), "tpu")]:
        to_stablehlo(function, example_of(x), platforms)
        assert planned.pop().platform == expected
    jax.eval_shape(function, x)
    assert planned.pop().platform == "cpu"


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (partial(ResNet, (1, 1), BasicBlock, num_classes=3, width=4), (16, 16, 3)),
        (
            partial(
                FCN,
                num_classes=2,
                backbone=partial(ResNet, (1, 1, 1, 1), BasicBlock, num_classes=None, width=4),
            ),
            (32, 32, 3),
        ),
        (partial(Net2, num_classes=3, features=4), (24, 1)),
    ],
    ids=["resnet", "fcn", "net2"],
)
def test_whole_networks_go_out(network, shape):
    net, x = network(), random_input(32, *shape)
    assert_same_at_any_batch(partial(net.apply, filled(net, x), train=False), x)


def test_what_depends_on_the_size_of_a_batch_is_refused():
    def halves(x):
        return x if x.shape[0] > 2 else 2 * x

    with pytest.raises(ValueError, match="depends on the size of a batch"):
        to_stablehlo(halves, jax.ShapeDtypeStruct((3,), jnp.float32))
