"""RedNet: a residual network whose spatial convolutions are involutions.

Li, Hu, Wang, Li, She, Zhu, Zhang, Chen: Involution: Inverting the Inherence of Convolution for Visual
Recognition. CVPR 2021. https://arxiv.org/abs/2103.06255
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.attention import he_normal_fan_out
from dyn.layers.involution import Involution
from dyn.layers.static_conv import Conv
from dyn.models.backbone import ConvFactory, convolve_spatially
from dyn.models.resnet import Bottleneck, ResNet
from dyn.ops.max_pool import max_pool

Array = jax.Array

_involution = partial(Involution, attention_norm="batch")


class RedNetStem(nn.Module):
    """A strided 3x3 convolution, a 3x3 involution, a 3x3 convolution and max pooling: a stride of 4.

    Attributes:
        features: number of output features; the first two layers have half as many.
        norm: makes a norm, as the submodules `norm1` to `norm3`.
        conv: makes the second layer, `conv2`.
        dtype: dtype of the computation; None for the inputs'.
    """

    features: int
    norm: Callable[..., nn.Module]
    conv: ConvFactory = _involution
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `[B, *spatial / 4, features]` of `x`, `[B, *spatial, C]`."""
        size = (3,) * (x.ndim - 2)
        fields = {"padding": 1, "use_bias": False, "dtype": self.dtype}
        static = partial(Conv, **fields, kernel_init=he_normal_fan_out)
        half = self.features // 2
        layers = (
            static(half, size, 2, name="conv1"),
            self.conv(half, size, 1, **fields, name="conv2"),
            static(self.features, size, 1, name="conv3"),
        )
        for n, layer in enumerate(layers, start=1):
            x = nn.relu(self.norm(name=f"norm{n}")(layer(x)))
        return max_pool(x, size, 2, padding=1)


RedNet = partial(
    ResNet,
    block=Bottleneck,
    conv=convolve_spatially(_involution, size=7),
    stem=RedNetStem,
)
"""`RedNet(stage_sizes=..., num_classes=...)`: bottlenecks with 7x7 involutions; the fields are `ResNet`'s."""

RedNet26 = partial(RedNet, stage_sizes=(1, 2, 4, 1))
RedNet38 = partial(RedNet, stage_sizes=(2, 3, 5, 2))
RedNet50 = partial(RedNet, stage_sizes=(3, 4, 6, 3))
RedNet101 = partial(RedNet, stage_sizes=(3, 4, 23, 3))
RedNet152 = partial(RedNet, stage_sizes=(3, 8, 36, 3))
