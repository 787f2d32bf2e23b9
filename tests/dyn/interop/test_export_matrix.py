"""Export of every layer, of every lowering and of whole networks."""

from functools import partial

import jax
import numpy as np
import pytest
from convolution_cases import PORTABLE
from export_checks import BATCHES, assert_same_at_any_batch
from layer_cases import LAYERS, Case, filled, random_input

from dyn.layers import Conv
from dyn.models import FCN, BasicBlock, Net2, ResNet
from dyn.ops import dynamic_conv

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", ["Conv", *(name for name in LAYERS if name != "ODConv")])
def test_every_layer_runs_with_any_batch(name):
    case = Case(Conv, looks_at=None) if name == "Conv" else LAYERS[name]
    x = random_input(32, *case.shape[1:])
    layer = case.layer()
    assert_same_at_any_batch(partial(layer.apply, filled(layer, x)), x)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("lowering", [name for name in PORTABLE if name != "reference"])
def test_every_lowering_runs_with_any_batch(lowering, groups):
    x, w = random_input(32, 5, 4, 4), random_input(3, 3, 3, 4 // groups, 6, seed=2)
    arrays = [x, random_input(32, 3, seed=3)]
    if lowering != "outputs":
        arrays.append(random_input(32, 3, 3, seed=4))

    @jax.jit
    def convolve(arrays):
        x, mix, *taps = arrays
        taps = taps[0] if taps else None
        return dynamic_conv(x, w, mix, taps=taps, lowering=lowering, feature_group_count=groups)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in arrays]
    program = jax.export.export(convolve)(shapes)
    for number in BATCHES:
        parts = [a[:number] for a in arrays]
        np.testing.assert_allclose(program.call(parts), convolve(parts), rtol=1e-5, atol=1e-5)


Backbone = partial(ResNet, (1, 1, 1, 1), BasicBlock, num_classes=None, width=4)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (partial(ResNet, (1, 1), BasicBlock, num_classes=3, width=4), (16, 16, 3)),
        (partial(FCN, num_classes=2, backbone=Backbone), (32, 32, 3)),
        (partial(Net2, num_classes=3, features=4), (24, 1)),
    ],
    ids=["resnet", "fcn", "net2"],
)
def test_networks_run_with_any_batch(network, shape):
    net, x = network(), random_input(32, *shape)
    assert_same_at_any_batch(partial(net.apply, filled(net, x), train=False), x)
