"""MobileNetV2 with interchangeable convolutions.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks. CVPR 2018.
https://arxiv.org/abs/1801.04381

Sizes, padding and norms are torchvision's, so that published weights fit.
"""

import flax.linen as nn

from dyn.models.inverted_residual import (
    BlockShape,
    InvertedResidualNet,
    Layout,
    round_features,
)

# For each stage: expansion of its blocks, features, number of blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(InvertedResidualNet):
    """A stem, seven stages of inverted residual blocks, a last 1x1 convolution, a linear classifier.

    `conv` makes the 1x1 convolutions, those of the blocks and the last one: nearly all multiply-adds and
    parameters are in them. `depthwise` makes the depthwise ones, which CondConv's, DyConv's and ODConv's
    authors made dynamic too. DCD's authors left them static, because its latent space cannot be depthwise,
    and so they did the first stage and the last convolution:

        conv, dense = partial(DCDConv, pool=None, reduction=1 / 16), DCDDense
        net = MobileNetV2(1000, conv, dense=dense, dynamic_stages=range(2, 8))

    `first_conv` makes the stem's, which KernelWarehouse's authors made dynamic.

    Attributes:
        num_classes: number of logits; 0 for the classifier's inputs; None for the features after each
            stage and those after the last convolution.
        conv: makes a 1x1 convolution: `dyn.layers.Conv`, `partial(ODConv, num_kernels=4)`, or any callable
            with `nn.Conv`'s arguments.
        depthwise: makes the 3x3 convolutions, which take `feature_group_count`; None for static ones.
        dense: makes the classifier, a callable with `nn.Dense`'s arguments such as `DCDDense`.
        width: factor of all numbers of features, which are then rounded to multiples of 8; the last
            convolution has at least 1280 features.
        stem: 'imagenet' (strided, and so is the second stage) or 'small' (neither) for pictures below about
            100 pixels and for short series.
        spatial_axes: 2 for pictures `[B, H, W, C]`, 1 for series `[B, L, C]`.
        dropout: share of the pooled features dropped before the classifier in training.
        dtype: dtype of the computation; None for the inputs'.
        remat: results of the blocks that the backward pass computes again; see `ResNet`.
        dynamic_stages: the stages, from 1, whose convolutions `conv` and `depthwise` make, the others' being
            static; the last convolution counts as a stage of its own, the eighth. None for all.
        first_conv: makes the stem's convolution; None for a static one.
        max_blocks: most blocks of a stage, for small networks; None for all.
        norm: makes a norm in place of each batch norm; see `ResNet`.
        attention: makes a layer that follows the last norm of every block; see `ResNet`.
        context: what the attention of `conv` and `depthwise` looks at; see `ResNet`.
        representation: size of a carried state.
        output_stride: largest ratio of the input's size to that of the last features. A stage that would
            exceed it dilates its depthwise kernels instead of striding; None for no limit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import MobileNetV2
        >>> odconv = partial(ODConv, num_kernels=2)
        >>> net = MobileNetV2(num_classes=10, width=0.25, stem="small", conv=odconv, depthwise=odconv)
        >>> x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        >>> logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> logits.shape
        (2, 10)
    """

    def make_layout(self) -> Layout:
        """Returns the sizes of the network."""
        inputs = stem = round_features(32 * self.width)
        stages = []
        for expansion, width, repeats, strides in STAGES:
            features, blocks = round_features(width * self.width), []
            for block in range(repeats):
                first = strides if block == 0 else 1
                blocks.append(BlockShape(3, expansion * inputs, features, first, nn.relu6))
                inputs = features
            stages.append(blocks)
        last = round_features(1280 * max(self.width, 1.0))
        return Layout(stem, stages, last, nn.relu6)
