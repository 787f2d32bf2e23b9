"""MobileNetV3-Large with interchangeable convolutions.

Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le, Adam: Searching for MobileNetV3.
ICCV 2019. https://arxiv.org/abs/1905.02244

Sizes, padding and norms are torchvision's, so that published weights fit.
"""

from typing import Any

import flax.linen as nn
import jax

from dyn.models.dropout import Dropout
from dyn.models.inverted_residual import (
    BlockShape,
    InvertedResidual,
    InvertedResidualNet,
    Layout,
    round_features,
)

Array = jax.Array

# For each stage its blocks: depthwise kernel, expanded features, features, stride, hard swish (or ReLU),
# squeeze-and-excitation.
STAGES = (
    ((3, 16, 16, 1, False, False),),
    ((3, 64, 24, 2, False, False), (3, 72, 24, 1, False, False)),
    ((5, 72, 40, 2, False, True), (5, 120, 40, 1, False, True), (5, 120, 40, 1, False, True)),
    (
        (3, 240, 80, 2, True, False),
        (3, 200, 80, 1, True, False),
        (3, 184, 80, 1, True, False),
        (3, 184, 80, 1, True, False),
    ),
    ((3, 480, 112, 1, True, True), (3, 672, 112, 1, True, True)),
    ((5, 672, 160, 2, True, True), (5, 960, 160, 1, True, True), (5, 960, 160, 1, True, True)),
)


class MobileNetV3(InvertedResidualNet):
    """A stem, six stages of inverted residual blocks, a last 1x1 convolution, a hidden layer, a classifier.

    Convolutions are replaced as in `MobileNetV2`: `conv` makes the 1x1 ones, `depthwise` the depthwise ones,
    `dynamic_stages` says where. Squeeze-and-excitation, in eight of the fifteen blocks, and the stem stay
    static.

    Attributes:
        num_classes: as in `MobileNetV2`, and so are all other fields; the last convolution is stage 7, with
            six times the features of stage 6 whatever the width.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import MobileNetV3
        >>> odconv = partial(ODConv, num_kernels=2)
        >>> net = MobileNetV3(num_classes=10, width=0.25, conv=odconv, depthwise=odconv)
        >>> x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
        >>> logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> logits.shape
        (2, 10)
    """

    def make_layout(self) -> Layout:
        """Returns the sizes of the network."""
        stages = []
        for blocks in STAGES:
            shapes = []
            for kernel, expanded, features, strides, swish, squeezes in blocks:
                expanded = round_features(expanded * self.width)
                sizes = kernel, expanded, round_features(features * self.width), strides
                squeezed = round_features(expanded // 4) if squeezes else 0
                shapes.append(BlockShape(*sizes, nn.hard_swish if swish else nn.relu, squeezed))
            stages.append(shapes)
        return Layout(
            round_features(16 * self.width),
            stages,
            6 * stages[-1][-1].features,
            nn.hard_swish,
            epsilon=1e-3,
            momentum=0.99,
        )

    def make_block(self, shape: BlockShape, **fields: Any) -> nn.Module:
        """Returns a block, from its sizes and the other fields of `InvertedResidual`."""
        return InvertedResidual(shape, **fields, gate=nn.hard_sigmoid)

    def apply_head(self, x: Array, train: bool) -> Array:
        """Returns the logits of the pooled features `[B, C]`."""
        hidden = nn.Dense(round_features(1280 * self.width), dtype=self.dtype, name="hidden")
        x = Dropout(self.dropout, deterministic=not train)(nn.hard_swish(hidden(x)))
        if self.num_classes == 0:
            return x
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)
