"""Semantic segmentation heads over any backbone that returns the features of its stages.

The backbone decides which convolutions are dynamic; those of the heads are static.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import global_average, he_normal_fan_out
from dyn.layers.fields import CheckedModule
from dyn.layers.static_conv import Conv
from dyn.models.backbone import make_batch_norm
from dyn.models.dropout import Dropout
from dyn.models.resnet import ResNet18
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.sharding import shard_like

Array = jax.Array
Backbone = Callable[..., nn.Module]
"""Makes a module that maps `(x, train=...)` to the features `[B, h, w, C]` of its stages."""


class FCN(CheckedModule):
    """A fully convolutional network, which classifies the backbone's last features.

        logits = resize(W ReLU(norm(conv3x3(f_last))) + b)

    Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation. CVPR 2015.
    https://arxiv.org/abs/1411.4038

    Deviations from the paper: fine detail comes from the backbone's output stride and not from the scores
    of earlier stages; one hidden 3x3 convolution with a norm, as in torchvision's head, instead of VGG's
    two large ones; interpolation is bilinear and not learned.

    Parameters: `backbone/...`, `hidden/conv/kernel`, `hidden/norm/{scale,bias}`, `logits/{kernel,bias}`.

    Attributes:
        num_classes: number of logits of each pixel, with that of the background.
        backbone: makes the backbone, `partial(ResNet18, num_classes=None, output_stride=16)` or any
            callable whose module returns the features of its stages. It is called with `name`, and with
            `dtype` unless that is None.
        features: size of the hidden layer; None for a quarter of the backbone's last features.
        dropout: share of the hidden layer dropped in training.
        dtype: dtype of the convolutions; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import FCN, BasicBlock, ResNet
        >>> conv = partial(ODConv, num_kernels=2)
        >>> backbone = partial(ResNet, (1,), BasicBlock, num_classes=None, width=8, conv=conv)
        >>> net = FCN(num_classes=21, backbone=backbone)
        >>> x = jnp.ones((1, 33, 40, 3))
        >>> variables = jax.jit(net.init)(jax.random.key(0), x)
        >>> jax.jit(net.apply)(variables, x).shape
        (1, 33, 40, 21)
    """

    num_classes: int = 21
    backbone: Backbone = partial(ResNet18, num_classes=None, output_stride=16)
    features: int | None = None
    dropout: float = 0.1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns the logits of every pixel, `[B, H, W, num_classes]`, in float32 or wider.

        Args:
            x: pictures `[B, H, W, C]` of any size.
            train: whether norms use (and update) batch statistics, and dropout drops. Needs
                `mutable=["batch_stats"]`, and the rng `dropout`.

        Raises:
            ValueError: if x is not a batch of pictures, if the backbone does not return the features of its
                stages, and for batch statistics of a single vector.
        """
        y = compute_stage_features(self.backbone, x, train=train, dtype=self.dtype)[-1]
        hidden = self.features or max(1, y.shape[-1] // 4)
        y = ConvNorm(hidden, 3, dtype=self.dtype, name="hidden")(y, train)
        y = Dropout(self.dropout, deterministic=not train)(y)
        y = nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(y)
        return resize_logits(y, x)


class DeepLabV3Plus(CheckedModule):
    """Atrous convolutions at several rates, and a decoder that restores the edges.

        e = ASPP(f_last),   y = [resize(e); ReLU(norm(W_low f_low))]
        logits = resize(W separable(separable(y)) + b)

    Chen, Zhu, Papandreou, Schroff, Adam: Encoder-Decoder with Atrous Separable Convolution for Semantic
    Image Segmentation. ECCV 2018. https://arxiv.org/abs/1802.02611

    Deviations from the paper and its authors' code: the backbone decides about its own dilations, and a
    ResNet of `dyn.models` has no multi-grid in its last stage; norms have torch's momentum and epsilon;
    features are resized without aligned corners; kernels are initialised normally with variance
    2 / fan_out. The decoder runs at the size of the stage that it takes: with a ResNet of stem 'small', that
    of the picture.

    Parameters: `backbone/...`, `aspp/{point,pooled,project}`, `aspp/atrous<n>/{depthwise,pointwise}`,
    `low_level`, `decoder<n>/{depthwise,pointwise}`, each `conv/kernel` and `norm/{scale,bias}`; and
    `logits/{kernel,bias}`.

    Attributes:
        num_classes: number of logits of each pixel, with that of the background.
        backbone: makes the backbone, as in `FCN`.
        features: features of the pyramid and the decoder; those of the fine stage are projected to 3/16
            of that number, the paper's 48 of 256.
        fine_stage: the stage, from 1, whose features f_low the decoder takes; the paper's are a quarter of
            the picture: 1 in a ResNet, 2 in a `MobileNetV2`, a `MobileNetV3` and an `EfficientNet`.
        rates: dilations of the pyramid at output stride 16. At another stride, which follows from the
            shapes, they are scaled to the same width in pixels: at stride 8 they are twice as large.
        dropout: share of the pyramid's features dropped in training.
        dtype: dtype of the convolutions; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import DeepLabV3Plus, ResNet18
        >>> conv = partial(ODConv, num_kernels=4)
        >>> backbone = partial(ResNet18, num_classes=None, output_stride=8, conv=conv)
        >>> net = DeepLabV3Plus(num_classes=21, backbone=backbone)
        >>> x = jnp.ones((1, 321, 481, 3))
        >>> jax.eval_shape(net.init_with_output, jax.random.key(0), x)[0].shape  # computes nothing
        (1, 321, 481, 21)
    """

    num_classes: int = 21
    backbone: Backbone = partial(ResNet18, num_classes=None, output_stride=16)
    features: int = 256
    fine_stage: int = 1
    rates: Sequence[int] = (6, 12, 18)
    dropout: float = 0.1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns the logits of every pixel; the arguments are `FCN`'s.

        In training it needs at least two pictures: the pooled features of one cannot be normalised.
        """
        stages = compute_stage_features(self.backbone, x, train=train, dtype=self.dtype)
        if not 1 <= self.fine_stage <= len(stages):
            raise ValueError(
                f"fine_stage={self.fine_stage}: the backbone has the stages 1 to {len(stages)}."
            )
        fine, last = stages[self.fine_stage - 1], stages[-1]
        stride = compute_stride(x.shape[1:3], last.shape[1:3])
        rates = [max(1, rate * 16 // stride) for rate in self.rates]
        y = ASPP(self.features, rates, dtype=self.dtype, name="aspp")(last, train)
        y = Dropout(self.dropout, deterministic=not train)(y)

        # A small share, so that they do not outweigh the pyramid's (section 3 of the paper).
        low_features = max(1, self.features * 3 // 16)
        low = ConvNorm(low_features, 1, dtype=self.dtype, name="low_level")(fine, train)
        y = shard_like(resize(y, fine.shape[1:3]), low)
        y = jnp.concatenate([y, low], axis=-1)
        for n in (1, 2):
            y = SeparableConv(self.features, dtype=self.dtype, name=f"decoder{n}")(y, train)
        y = nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(y)
        return resize_logits(y, x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: convolutions at several rates, and the global average."""

    features: int
    rates: Sequence[int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, h, w, C]` to `[B, h, w, features]`."""
        conv1x1 = partial(ConvNorm, self.features, 1, dtype=self.dtype)
        branches = [conv1x1(name="point")(x, train)]
        for n, rate in enumerate(self.rates, start=1):
            atrous = SeparableConv(self.features, rate, dtype=self.dtype, name=f"atrous{n}")
            branches.append(atrous(x, train))
        pooled = global_average(x, 2, float32_or_wider(x))[:, None, None]
        pooled = conv1x1(name="pooled")(pooled, train)
        branches.append(shard_like(jnp.broadcast_to(pooled, branches[0].shape), branches[0]))
        return conv1x1(name="project")(jnp.concatenate(branches, axis=-1), train)


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 convolution, each with norm and ReLU."""

    features: int
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, h, w, C]` to `[B, h, w, features]`."""
        channels = x.shape[-1]
        depthwise = ConvNorm(
            channels, 3, self.dilation, groups=channels, dtype=self.dtype, name="depthwise"
        )
        pointwise = ConvNorm(self.features, 1, dtype=self.dtype, name="pointwise")
        return pointwise(depthwise(x, train), train)


class ConvNorm(nn.Module):
    """ReLU(norm(conv(x))), of the same size."""

    features: int
    kernel_size: int
    dilation: int = 1
    groups: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, h, w, C]` to `[B, h, w, features]`."""
        # Right gradients also on meshes of several axes, where those of a grouped `nn.Conv` are wrong.
        conv = nn.Conv if self.groups == 1 else partial(Conv, lowering="outputs")
        y = conv(
            self.features,
            (self.kernel_size,) * 2,
            padding=self.dilation * (self.kernel_size // 2),
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_normal_fan_out,
            name="conv",
        )(x)
        if train and math.prod(y.shape[:-1]) == 1 and not self.is_initializing():
            raise ValueError(
                f"the batch norm of {'/'.join(self.path)} cannot normalise a single vector: its variance is "
                "zero, so the output would not depend on the picture. Train with two or more pictures in a "
                "batch."
            )
        norm = make_batch_norm(train, None)(name="norm")
        # flax's norm cannot mix bfloat16 and its float32 statistics under strict promotion. It computes in
        # float32 anyway.
        return nn.relu(norm(y.astype(float32_or_wider(y))).astype(y.dtype))


def compute_stage_features(
    backbone: Backbone, x: Array, *, train: bool, dtype: Any = None
) -> tuple[Array, ...]:
    """Makes the submodule `backbone` and applies it; call it inside a compact method.

    Args:
        backbone: makes the backbone.
        x: pictures `[B, H, W, C]`.
        train: as in `FCN`.
        dtype: dtype of the backbone; None for its own.

    Returns:
        The features after each stage, `[B, h, w, C]`.

    Raises:
        ValueError: if x or the backbone's features have another number of axes, or `backbone` is a module.
    """
    if x.ndim != 4:
        raise ValueError(f"the network takes pictures [B, H, W, C]; got shape {x.shape}.")
    if isinstance(backbone, nn.Module):
        raise ValueError(
            "backbone must be a function that makes a module: instead of ResNet18(num_classes=None) "
            "write partial(ResNet18, num_classes=None)."
        )
    fields = {} if dtype is None else {"dtype": dtype}
    features = backbone(**fields, name="backbone")(x, train=train)
    if not isinstance(features, tuple | list) or any(f.ndim != 4 for f in features):
        shapes = jax.tree.map(jnp.shape, features)
        raise ValueError(
            "the backbone must return the features [B, h, w, C] after each of its stages, as a ResNet "
            f"of dyn.models does with num_classes=None; it returned shape {shapes}."
        )
    return tuple(features)


def compute_stride(size: Sequence[int], reduced: Sequence[int]) -> int:
    """Returns the ratio of the picture's size to that of its features, a power of two.

    Each halving rounds up: 33 pixels at stride 16 are 3. Several ratios fit a single feature; the smallest
    is returned, because a dilated kernel sees only padding there.

    Args:
        size: `(H, W)` of the picture.
        reduced: `(h, w)` of the features.
    """
    stride = 1
    while any(math.ceil(n / stride) > max(1, m) for n, m in zip(size, reduced, strict=True)):
        stride *= 2
    return stride


def resize(x: Array, size: Sequence[int]) -> Array:
    """Resizes `[B, h, w, C]` to `[B, *size, C]` by bilinear interpolation, without aligned corners."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")


def resize_logits(y: Array, x: Array) -> Array:
    """Resizes logits to the pictures x, in float32 or wider: in bfloat16 many pixels would be tied."""
    return resize(y.astype(float32_or_wider(y)), x.shape[1:3])
