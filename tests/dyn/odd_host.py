"""A network of odd layers that `nn.Conv` serves: one channel, one pixel, kernels of one, a group each."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from dyn import layers

# Every layer as a person writes it who has read nothing: with its defaults.
PLAIN = {
    "nn.Conv": nn.Conv,
    "Conv": layers.Conv,
    "ODConv": layers.ODConv,
    "DynamicConv": layers.DynamicConv,
    "CondConv": layers.CondConv,
    "DCDConv": layers.DCDConv,
    "WarehouseConv": layers.WarehouseConv,
    "WarehouseConv, whole cells": partial(layers.WarehouseConv, spatial_partition=False),
    "FDConv": layers.FDConv,
    "FDConv, everywhere": partial(layers.FDConv, min_features=0, kernel_sizes=None),
    "PixelDynamicConv": layers.PixelDynamicConv,
    "Involution": layers.Involution,
    "DecoupledDynamicFilter": layers.DecoupledDynamicFilter,
    "DecoupledDynamicFilter, add": partial(layers.DecoupledDynamicFilter, combine="add"),
    "LightweightConv": layers.LightweightConv,
    "SequenceDynamicConv": layers.SequenceDynamicConv,
    "FrequencyDynamicConv": layers.FrequencyDynamicConv,
    "PartialFrequencyDynamicConv": layers.PartialFrequencyDynamicConv,
    "GatedConv": layers.GatedConv,
    "GatedConv, filters": partial(layers.GatedConv, granularity="filter"),
    "GatedConv, slices": partial(layers.GatedConv, granularity="slice"),
    "RotatedConv": layers.RotatedConv,
    "RotatedConv, max": partial(layers.RotatedConv, pooling="max"),
    "RotatedConv, attention": partial(layers.RotatedConv, pooling="attention"),
    "DeformableConv": layers.DeformableConv,
    "DeformableConv, unmodulated": partial(layers.DeformableConv, modulated=False),
    "SelectiveKernel": layers.SelectiveKernel,
    "SpectralNormConv": layers.SpectralNormConv,
    "SpectralNormConv, mixed": partial(layers.SpectralNormConv, num_kernels=4),
}
# The exceptions: what these methods cannot mean.
WITHOUT_GROUPS = ("DCDConv",)
SQUARE = ("RotatedConv", "RotatedConv, max", "RotatedConv, attention")


class OddNetwork(nn.Module):
    """Convolutions of `[*batch, 3, 3, 1]` and of their mean, one pixel, by `conv`."""

    conv: Callable[..., nn.Module]
    groups: bool = True
    other_ranks: bool = True

    @nn.compact
    def __call__(self, x):
        x = self.conv(1, (1, 1))(x)
        x = nn.relu(self.conv(6, (1, 1), use_bias=False)(x))
        if self.groups:
            x = self.conv(6, (3, 3), feature_group_count=6)(x)
            x = self.conv(6, (1, 1), feature_group_count=2)(x)
        x = jnp.mean(x, axis=(-3, -2), keepdims=True)
        x = self.conv(2, (3, 3), padding=1)(x)
        x = self.conv(1, (1, 1))(x)
        if self.other_ranks:
            series = self.conv(3, (1,))(x[..., 0, :])
            x = self.conv(1, (3, 1))(x) + series[..., None, :1]
            x = self.conv(1, (1, 1, 1))(x[..., None, :])[..., 0, :]
        return x[..., 0, 0, :]


def make_odd_network(name):
    return OddNetwork(PLAIN[name], name not in WITHOUT_GROUPS, name not in SQUARE)


# Single convolutions that `nn.Conv` computes: shape of the input, and fields.
ODD_CASES = {
    "one feature": ((2, 5, 5, 1), {"features": 1, "kernel_size": (3, 3)}),
    "one number": ((1, 1, 1, 1), {"features": 1, "kernel_size": (1, 1)}),
    "a kernel larger than the picture": ((2, 2, 2, 3), {"features": 4, "kernel_size": (5, 5)}),
    "and no padding": ((2, 2, 2, 3), {"features": 4, "kernel_size": (3, 3), "padding": "VALID"}),
    "a stride larger than the picture": (
        (2, 3, 3, 3),
        {"features": 4, "kernel_size": (3, 3), "strides": 4, "padding": 0},
    ),
    "no rows": ((2, 0, 5, 3), {"features": 4, "kernel_size": (3, 3)}),
    "no rows but padding": ((2, 0, 5, 3), {"features": 4, "kernel_size": (3, 3), "padding": 2}),
    "no pictures": ((0, 5, 5, 3), {"features": 4, "kernel_size": (3, 3)}),
    "an even kernel": ((2, 5, 5, 3), {"features": 4, "kernel_size": (4, 4), "padding": 1}),
    "no batch axis": ((5, 5, 3), {"features": 4, "kernel_size": (3, 3)}),
}
