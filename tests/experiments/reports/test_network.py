from functools import partial

import jax
import numpy as np
import pytest

from dyn.diagnostics import Cost, count_macs
from dyn.layers import ODConv
from dyn.models import Autoencoder
from dyn.models.resnet import BasicBlock, ResNet
from experiments.reports.network import (
    KernelUse,
    LayerCost,
    list_findings,
    measure_kernel_use,
    measure_layers,
)

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)


def test_layers_have_all_of_the_network_s_macs():
    conv = partial(ODConv, num_kernels=2, attention_norm="layer")
    net = ResNet(stage_sizes=(1, 1), block=BasicBlock, num_classes=3, width=4, conv=conv)
    variables = jax.eval_shape(net.init, jax.random.key(0), EXAMPLE)
    layers = measure_layers(net, variables, EXAMPLE)
    assert sum(layer.cost.macs for layer in layers) == count_macs(net.apply, variables, EXAMPLE)
    names = [layer.name for layer in layers]
    assert names[0] == "stem_conv" and names[-1] == "head" and len(set(names)) == len(names)
    for layer in layers:
        is_dynamic = "/conv" in layer.name
        assert (layer.attention.macs > 0) == is_dynamic
        assert layer.attention.parameters < layer.cost.parameters


@pytest.mark.parametrize("pooling", ["implicit", "explicit"])
def test_layers_of_other_methods_than_call(pooling):
    net = Autoencoder(widths=(4, 3), pooling=pooling)
    variables = jax.eval_shape(net.init, jax.random.key(0), EXAMPLE)
    layers = measure_layers(net, variables, EXAMPLE)
    names = [layer.name for layer in layers]
    assert names == ["encoder/conv1", "encoder/conv2", "decoder/conv2", "decoder/conv1"]
    assert sum(layer.cost.macs for layer in layers) == count_macs(net.apply, variables, EXAMPLE)


def make_use(name, spread=1.0, dead=(False, False), cosine=0.1):
    similarity = np.array([[1, cosine], [cosine, 1]])
    return KernelUse(name, np.array([0.5, 0.5]), 0.9, spread, np.array(dead), similarity)


@pytest.mark.parametrize(
    ("use", "finding"),
    [
        (make_use("b", spread=0.001), "1 of 2 layers has the same mixture"),
        (make_use("b", dead=(True, False)), "1 of 4 kernels is never used: b (1)."),
        (make_use("b", cosine=0.99), "In 1 of 2 layers two kernels are nearly the same"),
        (make_use("b"), "In no layer are two kernels nearly the same."),
    ],
)
def test_findings(use, finding):
    layers = [LayerCost("a", Cost(10, 100, (1, 2)), Cost(0, 0, ()))]
    network = Cost(20, 200, (1, 2))
    findings = list_findings(layers, [make_use("a"), use], network)
    assert any(one.startswith(finding) for one in findings)
    assert findings[0].startswith("a has the most multiply-adds (50%)")
    assert list_findings(layers, [], network)[-1] == "No layer mixes kernels."


def test_kernel_use():
    statistics = {"mean": [0.5, 0.5], "entropy": 1.0, "spread": 0.1, "dead": [False, False]}
    kernels = np.stack([np.ones((3, 3, 1, 2)), -np.ones((3, 3, 1, 2))]).astype(np.float32)
    params = {"a": {"kernel": kernels}, "b": {"spectrum": kernels}}
    single = {**statistics, "mean": [1.0], "dead": [False]}
    first, second = measure_kernel_use({"a": statistics, "b": statistics, "c": single}, params)
    assert first.largest_cosine == pytest.approx(-1) and first.spread == pytest.approx(0.2)
    assert second.similarity is None and second.largest_cosine is None
