"""Residual networks with selective kernels where their authors put them, and the shortcut of ResNet-D.

Li, Wang, Hu, Yang: Selective Kernel Networks. CVPR 2019. https://arxiv.org/abs/1903.06586
He, Zhang, Zhang, Zhang, Xie, Li: Bag of Tricks for Image Classification with Convolutional Neural Networks.
CVPR 2019. https://arxiv.org/abs/1812.01187

The networks are timm's of the same names, so that its weights fit.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax

from dyn.layers.attention import he_normal_fan_out
from dyn.layers.selective_kernel import SelectiveKernel
from dyn.layers.static_conv import Conv
from dyn.models.resnet import BasicBlock, Bottleneck, ResNet
from dyn.ops.geometry import Geometry
from dyn.ops.sharding import automate_sharding

Array = jax.Array


class SelectiveBasicBlock(BasicBlock):
    """A basic block whose first convolution alone is made by `conv`, with norms and ReLUs of its own."""

    selective = 1


class SelectiveBottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution alone is made by `conv`, with norms and ReLUs of its own."""

    selective = 2


class PooledConv(Conv):
    """Averages over windows of the size of the stride, and then convolves without a stride.

    `ResNet(shortcut=PooledConv)` has the shortcuts of ResNet-D: a strided 1x1 convolution would read one
    input of four. Windows at the end of an axis average over what they have.
    """

    kernel_init: nn.initializers.Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layer; arguments and errors are those of `dyn.layers.Conv`."""
        x, batch = self.flatten_inputs(inputs)
        strides = super().resolve_geometry(x).strides
        if max(strides) > 1:
            x = automate_sharding(partial(_average_windows, strides=strides), x)
        return super().__call__(x.reshape(*batch, *x.shape[1:]))

    def resolve_geometry(self, x: Array) -> Geometry:
        """Returns how the kernel slides over what is averaged."""
        geometry = super().resolve_geometry(x)
        return dataclasses.replace(geometry, strides=(1,) * geometry.rank)


def _average_windows(x: Array, strides: tuple[int, ...]) -> Array:
    padding = [(0, -n % step) for n, step in zip(x.shape[1:-1], strides, strict=True)]
    return nn.avg_pool(x, strides, strides, padding, count_include_pad=False)


# The widths of the attention are timm's, which `attention_norm="batch"` completes for its weights.
_SMALL = partial(
    SelectiveKernel, split_input=True, reduction=1 / 8, multiple_of=16, attention_norm="batch"
)
_LARGE = partial(SelectiveKernel, split_input=True, attention_norm="batch")
_WIDE = partial(SelectiveKernel, multiple_of=32, attention_norm="batch")

SKResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=SelectiveBasicBlock, conv=_SMALL)
SKResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=SelectiveBasicBlock, conv=_SMALL)
SKResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=SelectiveBottleneck, conv=_LARGE)
SKResNeXt50 = partial(
    ResNet,
    stage_sizes=(3, 4, 6, 3),
    block=partial(SelectiveBottleneck, groups=32, group_width=4),
    conv=_WIDE,
)
