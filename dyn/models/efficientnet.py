"""EfficientNet-B0, B1 and Lite0 with interchangeable convolutions, and CondConv's.

Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. ICML 2019.
https://arxiv.org/abs/1905.11946
Yang, Bender, Le, Ngiam: CondConv: Conditionally Parameterized Convolutions for Efficient Inference.
NeurIPS 2019. https://arxiv.org/abs/1904.04971

Weights of TensorFlow's networks, also those that timm (`tf_efficientnet_*`) and others have converted, need
`padding="same"` and `epsilon=1e-3`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.attention import ATTENTION_PRECISION
from dyn.layers.cond_conv import CondConv
from dyn.models.inverted_residual import (
    BlockShape,
    InvertedResidual,
    InvertedResidualNet,
    Layout,
    round_features,
)

Array = jax.Array

# For each stage: expansion of its blocks, depthwise kernel, features, number of blocks, stride of the first.
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


class EfficientNet(InvertedResidualNet):
    """A stem, seven stages of inverted residual blocks with squeeze-and-excitation, a last 1x1, a classifier.

    The defaults are EfficientNet-B0. Convolutions are replaced as in `MobileNetV2`: `conv` makes the 1x1
    ones, `depthwise` the depthwise ones, `dynamic_stages` says where; squeeze-and-excitation stays static.

    Attributes:
        num_classes: as in `MobileNetV2`, and so are the fields up to `dynamic_stages`.
        depth: factor of the number of blocks in each stage, which is rounded up: 1.1 for B1.
        padding: 'torch' (symmetric) or 'same' (TensorFlow's: strided kernels get more after than before).
        epsilon: of the norms: torch's 1e-5, or TensorFlow's 1e-3.
        momentum: share of the norms' running statistics that a step keeps: torch's 0.9, or the authors' 0.99.
        squeeze: size of the squeezed vector, as a share of the block's input features; 0 for no
            squeeze-and-excitation.
        activation: the only one, also in squeeze-and-excitation.
        scale_ends: whether `width` and `depth` change the stem, the first and last stage's number of blocks
            and the last convolution. Not in the Lite networks.
        drop_connect: share of the samples whose residual branch the last block drops in training; it grows
            in equal steps from 0 in the first block.
        router: makes the routing that all dynamic convolutions of a block share (`CondConv`'s field), from
            the block's mean input: `partial(nn.Dense, 4)` for 4 experts. None: each has its own attention.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import EfficientNetB0
        >>> odconv = partial(ODConv, num_kernels=2)
        >>> net = EfficientNetB0(num_classes=10, width=0.25, conv=odconv, depthwise=odconv)
        >>> x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
        >>> logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> logits.shape
        (2, 10)
    """

    depth: float = 1.0
    padding: str = "torch"
    epsilon: float = 1e-5
    momentum: float = 0.9
    squeeze: float = 0.25
    activation: Callable[[Array], Array] = nn.silu
    scale_ends: bool = True
    drop_connect: float = 0.2
    router: Callable[..., nn.Module] | None = None

    def make_layout(self) -> Layout:
        """Returns the sizes of the network."""
        ends = self.width if self.scale_ends else 1.0
        inputs = stem = round_features(32 * ends)
        stages = []
        for expansion, kernel, width, repeats, strides in STAGES:
            features, blocks = round_features(width * self.width), []
            if self.scale_ends or 0 < len(stages) < len(STAGES) - 1:
                repeats = math.ceil(repeats * self.depth)
            for block in range(repeats):
                first = strides if block == 0 else 1
                sizes = kernel, expansion * inputs, features, first
                squeezed = int(inputs * self.squeeze)
                blocks.append(BlockShape(*sizes, self.activation, squeezed))
                inputs = features
            stages.append(blocks)
        return Layout(
            stem,
            stages,
            round_features(1280 * ends),
            self.activation,
            self.padding,
            self.epsilon,
            self.momentum,
            self.drop_connect,
            # A depthwise kernel has as many outputs as positions.
            nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
        )

    def make_block(self, shape: BlockShape, **fields: Any) -> nn.Module:
        """Returns a block, from its sizes and the other fields of `InvertedResidual`.

        Raises:
            ValueError: for another context than a shared routing looks at.
        """
        if self.router is not None and self.context not in ("input", "block"):
            raise ValueError(
                f"context={self.context!r}: a router looks at the block's mean input; leave out one of them."
            )
        return InvertedResidual(
            shape, **fields, router=self.router, squeeze_activation=self.activation
        )


TENSORFLOW = {"padding": "same", "epsilon": 1e-3, "momentum": 0.99}
"""The fields of `EfficientNet` as in TensorFlow, for weights that were trained there."""

EfficientNetB0 = EfficientNet
EfficientNetB1 = partial(EfficientNet, depth=1.1)
EfficientNetLite0 = partial(
    EfficientNet, squeeze=0.0, activation=nn.relu6, scale_ends=False, **TENSORFLOW
)


# Uniform up to one over the root of the sum of inputs and outputs.
Router = partial(
    nn.Dense,
    kernel_init=nn.initializers.variance_scaling(1 / 6, "fan_avg", "uniform"),
    precision=ATTENTION_PRECISION,
)
"""Makes the routing of CondConv's authors: `partial(Router, features=4)` for 4 experts."""


def make_condconv_fields(num_kernels: int) -> dict[str, Any]:
    """Returns the fields that make an `EfficientNet` that of CondConv's authors.

    All three convolutions of the blocks in the last three stages are `CondConv`, without bias, and share one
    routing that looks at the block's input.

    Args:
        num_kernels: K, the number of experts: 4 or 8 in the published networks.

    Example:
        >>> from dyn.models import EfficientNetB0
        >>> from dyn.models.efficientnet import TENSORFLOW, make_condconv_fields
        >>> net = EfficientNetB0(num_classes=1000, **make_condconv_fields(4), **TENSORFLOW)
        >>> net.dynamic_stages
        (5, 6, 7)
    """
    conv = partial(CondConv, num_kernels=num_kernels)
    router = partial(Router, num_kernels)
    return {"conv": conv, "depthwise": conv, "router": router, "dynamic_stages": (5, 6, 7)}
