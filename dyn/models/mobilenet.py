"""MobileNetV2, whose convolutions are given by the caller.

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
from dyn.layers.static_conv import Conv as StaticConv
from dyn.models.resnet import Conv

Array = jax.Array

# Of each stage: how many times wider its blocks are inside, features, blocks, stride of the first.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """A stem, seven stages of inverted residual blocks, a last 1x1 convolution, a linear classifier.

    Nearly all multiply-adds and parameters are in the 1x1 convolutions, so these are what `conv` makes: those
    of the blocks, and the last one. The depthwise ones stay static unless `depthwise` is given, as
    CondConv's, DyConv's and ODConv's authors have it; the latent space of DCD cannot be depthwise, and
    its authors leave them static. The stem is always static.

    Attributes:
        num_classes: number of logits; None for no classifier: the network then returns the features
            behind each stage, and last those behind the last convolution.
        conv: makes a 1x1 convolution: `dyn.layers.Conv`, `partial(ODConv, num_kernels=4)`, or any callable
            with `nn.Conv`'s arguments.
        depthwise: makes the 3x3 convolutions, which take `feature_group_count`; None for static ones.
        dense: makes the classifier, a callable with `nn.Dense`'s arguments such as `DCDDense`.
        width: what all numbers of features are multiplied by, and rounded to a multiple of 8; the last
            convolution has at least 1280.
        stem: 'imagenet' (strided, and so is the second stage) or 'small' (neither) for pictures below about
            100 pixels and for short series.
        spatial_axes: 2 for pictures `[B, H, W, C]`, 1 for series `[B, L, C]`.
        dropout: share of the pooled features dropped before the classifier in training.
        dtype: dtype of the computation; None for the inputs'.

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
    conv: Conv = StaticConv
    depthwise: Conv | None = None
    dense: Callable[..., nn.Module] = nn.Dense
    width: float = 1.0
    stem: str = "imagenet"
    spatial_axes: int = 2
    dropout: float = 0.2
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, head_only: bool = False
    ) -> Array | tuple[Array, ...]:
        """Logits `[B, num_classes]` of `x`, `[B, *spatial, C]`; without classifier, the features.

        Args:
            x: pictures or series, channels last.
            train: whether norms use (and update) batch statistics, and dropout drops. Needs
                `mutable=["batch_stats"]`, and the rng `dropout` if there is any.
            head_only: whether, of a network in training, `head` alone trains: all below it runs as in
                inference.
        """
        axes = self.spatial_axes
        if x.ndim != axes + 2:
            raise ValueError(
                f"the network takes [B, *spatial, C] with spatial_axes={axes}; got shape {x.shape}."
            )
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"stem={self.stem!r} is unknown: write 'imagenet' or 'small'.")
        norm = partial(
            nn.BatchNorm,
            use_running_average=head_only or not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        fields = {"use_bias": False, "dtype": self.dtype, "kernel_init": he_normal_fan_out}
        strided = self.stem == "imagenet"
        x = StaticConv(
            self._scaled(32), (3,) * axes, 1 + strided, padding=1, **fields, name="stem_conv"
        )(x)
        x = nn.relu6(norm(name="stem_norm")(x))

        features = []
        for stage, (expansion, wide, blocks, stride) in enumerate(STAGES, 1):
            if stage == 2 and not strided:
                stride = 1
            for block in range(1, blocks + 1):
                x = InvertedResidual(
                    features=self._scaled(wide),
                    expansion=expansion,
                    strides=stride if block == 1 else 1,
                    conv=partial(self.conv, **fields),
                    depthwise=partial(self.depthwise or StaticConv, **fields),
                    norm=norm,
                    name=f"stage{stage}_block{block}",
                )(x)
            features.append(x)
        last = self._scaled(1280) if self.width > 1 else 1280
        x = self.conv(last, (1,) * axes, padding=0, **fields, name="last_conv")(x)
        x = nn.relu6(norm(name="last_norm")(x))
        if self.num_classes is None:
            return (*features, x)

        x = jnp.mean(x, axis=tuple(range(1, axes + 1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)

    def _scaled(self, features: int) -> int:
        """The nearest multiple of 8, none below 8, and none that takes more than a tenth away."""
        wanted = features * self.width
        nearest = max(8, int(wanted + 4) // 8 * 8)
        return nearest if nearest >= 0.9 * wanted else nearest + 8


class InvertedResidual(nn.Module):
    """A wider 1x1 convolution, a depthwise 3x3 one, a narrow 1x1 one without activation; a shortcut."""

    features: int
    expansion: int
    strides: int
    conv: Conv
    depthwise: Conv
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, *spatial, C]` to `[B, *spatial / strides, features]`."""
        axes, wide = x.ndim - 2, self.expansion * x.shape[-1]
        one = partial(self.conv, kernel_size=(1,) * axes, padding=0)
        y = x
        if self.expansion > 1:
            y = nn.relu6(self.norm(name="expand_norm")(one(wide, name="expand")(y)))
        y = self.depthwise(
            wide,
            (3,) * axes,
            self.strides,
            padding=1,
            feature_group_count=wide,
            name="depthwise",
        )(y)
        y = nn.relu6(self.norm(name="depthwise_norm")(y))
        y = self.norm(name="project_norm")(one(self.features, name="project")(y))
        return x + y if x.shape == y.shape else y
