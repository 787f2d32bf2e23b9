"""MobileNetV2 with interchangeable convolutions.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks. CVPR 2018.
https://arxiv.org/abs/1801.04381

Sizes, padding and norms are torchvision's, so that published weights fit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import he_normal_fan_out
from dyn.layers.fields import CheckedModule
from dyn.layers.static_conv import Conv
from dyn.models.backbone import (
    ConvFactory,
    Remat,
    bind_fields,
    call_block,
    check_input,
    make_batch_norm,
)
from dyn.models.dropout import Dropout

Array = jax.Array

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


class MobileNetV2(CheckedModule):
    """A stem, seven stages of inverted residual blocks, a last 1x1 convolution, a linear classifier.

    `conv` makes the 1x1 convolutions, those of the blocks and the last one: nearly all multiply-adds and
    parameters are in them. `depthwise` makes the depthwise ones, which CondConv's, DyConv's and ODConv's
    authors made dynamic too. (DCD's authors left them static: its latent space cannot be depthwise.)
    `first_conv` makes that of the stem, which KernelWarehouse's authors made dynamic.

    Attributes:
        num_classes: number of logits; None for no classifier: the network then returns the features
            after each stage and those after the last convolution.
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
        first_conv: makes the stem's convolution; None for a static one.

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

    num_classes: int | None
    conv: ConvFactory = Conv
    depthwise: ConvFactory | None = None
    dense: Callable[..., nn.Module] = nn.Dense
    width: float = 1.0
    stem: str = "imagenet"
    spatial_axes: int = 2
    dropout: float = 0.2
    dtype: Any = None
    remat: Remat = False
    first_conv: ConvFactory | None = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, head_only: bool = False
    ) -> Array | tuple[Array, ...]:
        """Returns the logits or the features of `x`, `[B, *spatial, C]`; the arguments are `ResNet`'s."""
        check_input(x, self.spatial_axes, self.stem)
        axes = self.spatial_axes
        norm = make_batch_norm(train and not head_only, self.dtype)
        fields = {"use_bias": False, "dtype": self.dtype, "kernel_init": he_normal_fan_out}
        stem_strides = 2 if self.stem == "imagenet" else 1
        stem = bind_fields(self.first_conv or Conv)(
            self._scale(32), (3,) * axes, stem_strides, padding=1, **fields, name="stem_conv"
        )
        x = stem(x)
        x = nn.relu6(norm(name="stem_norm")(x))

        conv = bind_fields(self.conv, **fields)
        features = []
        for stage, (expansion, width, blocks, strides) in enumerate(STAGES, 1):
            if stage == 2 and self.stem == "small":
                strides = 1
            for block in range(1, blocks + 1):
                module = InvertedResidual(
                    features=self._scale(width),
                    expansion=expansion,
                    strides=strides if block == 1 else 1,
                    conv=conv,
                    depthwise=bind_fields(self.depthwise or Conv, **fields),
                    norm=norm,
                    name=f"stage{stage}_block{block}",
                )
                x = call_block(module, self.remat, x)
            features.append(x)
        last_features = self._scale(1280) if self.width > 1 else 1280
        x = conv(last_features, (1,) * axes, padding=0, name="last_conv")(x)
        x = nn.relu6(norm(name="last_norm")(x))
        if self.num_classes is None:
            return (*features, x)

        x = jnp.mean(x, axis=tuple(range(1, axes + 1)))
        x = Dropout(self.dropout, deterministic=not train)(x)
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)

    def _scale(self, features: int) -> int:
        """Multiplies by `width` and rounds to a multiple of 8: at least 8, and at most a tenth less."""
        exact = features * self.width
        nearest = max(8, int(exact + 4) // 8 * 8)
        return nearest if nearest >= 0.9 * exact else nearest + 8


class InvertedResidual(nn.Module):
    """A 1x1 convolution that expands, a depthwise 3x3, a linear 1x1 that projects; a shortcut."""

    features: int
    expansion: int
    strides: int
    conv: ConvFactory
    depthwise: ConvFactory
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[B, *spatial, C]` to `[B, *spatial / strides, features]`."""
        axes = x.ndim - 2
        hidden = self.expansion * x.shape[-1]
        conv1x1 = partial(self.conv, kernel_size=(1,) * axes, padding=0)
        y = x
        if self.expansion > 1:
            y = nn.relu6(self.norm(name="expand_norm")(conv1x1(hidden, name="expand")(y)))
        y = self.depthwise(
            hidden,
            (3,) * axes,
            self.strides,
            padding=1,
            feature_group_count=hidden,
            name="depthwise",
        )(y)
        y = nn.relu6(self.norm(name="depthwise_norm")(y))
        y = self.norm(name="project_norm")(conv1x1(self.features, name="project")(y))
        return x + y if x.shape == y.shape else y
