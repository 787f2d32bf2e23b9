"""Residual networks in 1-D and 2-D whose block convolutions are given by the caller.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016. https://arxiv.org/abs/1512.03385

Padding is symmetric as in torch ('SAME' is not, for strided kernels), the stride of a bottleneck sits in
its 3x3 convolution, and norms have torch's momentum and epsilon, so that published weights fit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import he_normal_fan_out

Array = jax.Array
Conv = Callable[..., nn.Module]
"""`conv(features, kernel_size, strides, padding=..., use_bias=..., dtype=..., name=...)`, as `nn.Conv`."""


class ResNet(nn.Module):
    """A residual network: stem, four stages of blocks, global average, linear classifier.

    `conv` makes every convolution of the blocks' residual branches; those of the stem and the shortcuts
    stay static, as in the papers of the dynamic layers.

    Attributes:
        stage_sizes: number of blocks in each stage.
        block: `BasicBlock` or `Bottleneck`.
        num_classes: number of logits.
        conv: makes a block convolution: `nn.Conv`, `partial(ODConv, num_kernels=4)`, or any callable
            with `nn.Conv`'s arguments.
        attention: makes what stands behind the last norm of every block's residual branch, for instance
            `SqueezeExcite` or `CBAM`; None for nothing.
        dense: makes the classifier, a callable with `nn.Dense`'s arguments such as `DCDDense`.
        width: features of the first stage; each later stage has twice as many.
        stem: 'imagenet' (7x7, stride 2, max pooling) or 'small' (3x3, stride 1) for pictures below
            about 100 pixels and for short series.
        spatial_axes: 2 for pictures `[B, H, W, C]`, 1 for series `[B, L, C]`.
        dropout: share of the pooled features dropped before the classifier in training.
        dtype: dtype of the computation; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import ResNet18
        >>> net = ResNet18(num_classes=10, width=8, stem="small", conv=partial(ODConv, num_kernels=2))
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = jax.jit(net.init)(jax.random.key(0), x)
        >>> net.apply(variables, x).shape
        (2, 10)
    """

    stage_sizes: Sequence[int]
    block: Callable[..., nn.Module]
    num_classes: int
    conv: Conv = nn.Conv
    attention: Callable[..., nn.Module] | None = None
    dense: Callable[..., nn.Module] = nn.Dense
    width: int = 64
    stem: str = "imagenet"
    spatial_axes: int = 2
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits `[B, num_classes]` of `x`, `[B, *spatial, C]`.

        Args:
            x: pictures or series, channels last.
            train: whether norms use (and update) batch statistics, and dropout drops. Needs
                `mutable=["batch_stats"]`, and the rng `dropout` if there is any.
        """
        axes = self.spatial_axes
        if x.ndim != axes + 2:
            raise ValueError(
                f"the network takes [B, *spatial, C] with spatial_axes={axes}; got shape {x.shape}."
            )
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        static = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal_fan_out)

        if self.stem == "imagenet":
            x = static(self.width, (7,) * axes, 2, padding=3, name="stem_conv")(x)
            x = nn.relu(norm(name="stem_norm")(x))
            x = nn.max_pool(x, (3,) * axes, (2,) * axes, padding=[(1, 1)] * axes)
        elif self.stem == "small":
            x = static(self.width, (3,) * axes, 1, padding=1, name="stem_conv")(x)
            x = nn.relu(norm(name="stem_norm")(x))
        else:
            raise ValueError(f"stem={self.stem!r} is unknown: write 'imagenet' or 'small'.")

        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                x = self.block(
                    features=self.width * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    conv=partial(self.conv, use_bias=False, dtype=self.dtype),
                    static=static,
                    norm=norm,
                    attention=self.attention,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x)

        x = jnp.mean(x, axis=tuple(range(1, axes + 1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    strides: int
    conv: Conv
    static: Conv
    norm: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, *spatial, C]` to `[B, *spatial / strides, features]`."""
        kernel = (3,) * (x.ndim - 2)
        y = self.conv(self.features, kernel, self.strides, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.features, kernel, 1, padding=1, name="conv2")(y)
        y = self.norm(name="norm2")(y)
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        return nn.relu(y + _shortcut(self, x, y))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions with four times the features, and a shortcut."""

    features: int
    strides: int
    conv: Conv
    static: Conv
    norm: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, *spatial, C]` to `[B, *spatial / strides, 4 * features]`."""
        one, three = (1,) * (x.ndim - 2), (3,) * (x.ndim - 2)
        y = self.conv(self.features, one, 1, padding=0, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.features, three, self.strides, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(4 * self.features, one, 1, padding=0, name="conv3")(y)
        y = self.norm(name="norm3")(y)
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        return nn.relu(y + _shortcut(self, x, y))


def _shortcut(block: BasicBlock | Bottleneck, x: Array, y: Array) -> Array:
    """The input itself, or a strided 1x1 projection of it where the shape changes."""
    if x.shape == y.shape:
        return x
    one = (1,) * (x.ndim - 2)
    x = block.static(y.shape[-1], one, block.strides, padding=0, name="downsample_conv")(x)
    return block.norm(name="downsample_norm")(x)


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
