"""Every layer in a residual network and in MobileNetV2, with norms and without."""

from functools import partial

import flax.linen as nn
import pytest
from fold_cases import assert_folds
from layer_cases import CONVOLUTIONS, random_input
from products import thin_out

from dyn import layers
from dyn.interop.fold_norms import SCALED
from dyn.models import BasicBlock, Bottleneck, ResNet, mobilenet

pytestmark = pytest.mark.matrix

CONVS = {name: case.make for name, case in CONVOLUTIONS.items()} | {
    "nn.Conv": nn.Conv,
    "Conv": layers.Conv,
    "SpectralNormConv, one kernel": layers.SpectralNormConv,
    "RotatedConv, mean": partial(layers.RotatedConv, rotations=3, pooling="mean"),
}


def is_scaled(make):
    return getattr(make, "func", make) in SCALED


@pytest.mark.parametrize("name", thin_out(CONVS, step=2))
def test_residual_networks(name):
    make = CONVS[name]
    net = ResNet((1, 1), BasicBlock, num_classes=3, width=4, stem="small", conv=make)
    # Stem, shortcut, and two norms in each block.
    assert_folds(net, random_input(2, 6, 6, 3), 6 if is_scaled(make) else 2)


# Not FDConv: filled at random, six of it turn a change of one in a million into one in ten thousand.
@pytest.mark.parametrize(
    "name", thin_out([name for name in CONVS if not name.startswith("FDConv")], step=2)
)
def test_mobilenet(name, monkeypatch):
    # Two of the seven stages: with and without an expansion, strided, and with a shortcut.
    monkeypatch.setattr(mobilenet, "STAGES", ((1, 16, 1, 1), (6, 24, 2, 2)))
    make = CONVS[name]
    depthwise = None if name.startswith("DCD") else make
    net = mobilenet.MobileNetV2(
        num_classes=3, width=0.25, stem="small", conv=make, depthwise=depthwise, remat=True
    )
    # The stem, two norms in the first block and three in the others, and the last.
    number = 1 + 2 + 2 * 3 + 1
    assert_folds(net, random_input(2, 4, 4, 3), number if is_scaled(make) else 1)


def test_bottlenecks_with_dynamic_shortcuts_and_gates():
    conv = partial(layers.ODConv, num_kernels=2)
    net = ResNet(
        (1,), Bottleneck, num_classes=3, width=4, conv=conv, shortcut=conv, attention=layers.CBAM
    )
    # The norm of CBAM's own convolution stays.
    folded = assert_folds(net, random_input(2, 16, 16, 3), 5)
    assert not folded.kept
