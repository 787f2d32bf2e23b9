"""Counts the parameters and multiply-adds of a ResNet-18 with each layer, for 1000 classes at 224 pixels.

    python -m experiments.benchmarks.network_sizes

Writes `experiments/results/network_sizes.csv`; `experiments.benchmarks.documents` writes the numbers into the
README. Nothing is computed, only traced.
"""

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn import layers
from dyn.diagnostics import count_macs, count_parameters
from dyn.models import ResNet18, SKResNet18
from experiments.benchmarks.documents import RESULTS
from experiments.core import cli
from experiments.core.files import write_csv

HEADER = ("layer", "parameters", "macs")
PICTURE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


def main() -> None:
    """Writes the table of all layers."""
    write_csv(RESULTS / "network_sizes.csv", HEADER, count_all())


def list_networks() -> dict[str, nn.Module]:
    """Returns a network for each layer, by the layer's name in the README."""
    convs = {
        "Conv": layers.Conv,
        "ODConv(num_kernels=4)": partial(layers.ODConv, num_kernels=4),
        "ODConv(num_kernels=1)": partial(layers.ODConv, num_kernels=1),
        "DynamicConv": layers.DynamicConv,
        "CondConv": layers.CondConv,
        # With 'auto', the products depend on how many devices this machine has.
        "FDConv": partial(layers.FDConv, lowering="samples"),
        "PixelDynamicConv": layers.PixelDynamicConv,
        "Involution": layers.Involution,
        "DecoupledDynamicFilter": layers.DecoupledDynamicFilter,
        "SequenceDynamicConv": layers.SequenceDynamicConv,
        "FrequencyDynamicConv": layers.FrequencyDynamicConv,
        "PartialFrequencyDynamicConv": layers.PartialFrequencyDynamicConv,
        "GatedConv": layers.GatedConv,
        "RotatedConv": layers.RotatedConv,
        "DeformableConv": layers.DeformableConv,
        "SpectralNormConv(num_kernels=4)": partial(layers.SpectralNormConv, num_kernels=4),
    }
    networks = {name: ResNet18(num_classes=1000, conv=conv) for name, conv in convs.items()}
    networks["DCDConv"] = ResNet18(num_classes=1000, conv=layers.DCDConv, dense=layers.DCDDense)
    networks["PixelDynamicConv on a carried KernelRepresentation"] = ResNet18(
        num_classes=1000, conv=layers.PixelDynamicConv, context="carried_pixels"
    )
    networks["WarehouseConv"] = layers.share_kernels(
        lambda conv: ResNet18(num_classes=1000, conv=conv, shortcut=conv), PICTURE
    )
    networks["SqueezeExcite"] = ResNet18(num_classes=1000, attention=layers.SqueezeExcite)
    networks["CBAM"] = ResNet18(num_classes=1000, attention=layers.CBAM)
    for attention in (layers.EfficientChannelAttention, layers.CoordinateAttention):
        networks[attention.__name__] = ResNet18(num_classes=1000, attention=attention)
    networks["DynamicReLU"] = ResNet18(num_classes=1000, activation=layers.DynamicReLU)
    networks["SelectiveKernel"] = SKResNet18(num_classes=1000)
    return networks


def count_all() -> Iterator[tuple[str, int, int]]:
    """Yields the name of each layer, the parameters of its network, and its multiply-adds for one picture."""
    for name, network in list_networks().items():
        shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), PICTURE)
        macs = count_macs(partial(network.apply, train=False), shapes, PICTURE)
        yield name, count_parameters(shapes["params"]), macs


if __name__ == "__main__":
    cli.run_command(main, __doc__)
