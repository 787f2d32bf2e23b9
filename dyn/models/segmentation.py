"""Heads that give every pixel a class, over any backbone that returns the features of its stages.

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
from dyn.models.resnet import ResNet18
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array
Backbone = Callable[..., nn.Module]
"""Makes a module that takes `(x, train=...)` and returns the features `[B, h, w, C]` of its stages."""


class FCN(nn.Module):
    """A fully convolutional network: classes from the backbone's last features alone.

        logits = resize(W ReLU(norm(conv3x3(f_last))) + b)

    Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation. CVPR 2015.
    https://arxiv.org/abs/1411.4038

    Deviations from the paper: fine detail comes from the backbone's output stride and not from sums with
    the scores of earlier stages; one hidden 3x3 convolution with a norm, as in torchvision's head,
    instead of VGG's two large ones; interpolation is bilinear and not learned.

    Parameters: `backbone/...`, `hidden/conv/kernel`, `hidden/norm/{scale,bias}`, `logits/{kernel,bias}`.

    Attributes:
        num_classes: number of logits of each pixel, the background's among them.
        backbone: makes the backbone, `partial(ResNet18, num_classes=None, output_stride=16)` or any
            callable whose module returns the features of its stages. It is given `name`, and `dtype`
            where there is one.
        features: size of the hidden layer; None for a quarter of the backbone's last features.
        dropout: share of the hidden layer dropped in training.
        dtype: dtype of the convolutions; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import FCN, BasicBlock, ResNet  # or ResNet18, without the first two arguments
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
        """Logits of every pixel.

        Args:
            x: pictures `[B, H, W, C]` of any size.
            train: whether norms use (and update) batch statistics, and dropout drops. Needs
                `mutable=["batch_stats"]`, and the rng `dropout`.

        Returns:
            `[B, H, W, num_classes]`, in float32 or wider.

        Raises:
            ValueError: for another number of axes, for a backbone that returns no features of stages, and
                for batch statistics of a single vector.
        """
        y = stage_features(self.backbone, x, train=train, dtype=self.dtype)[-1]
        hidden = self.features or max(1, y.shape[-1] // 4)
        y = ConvNorm(hidden, 3, dtype=self.dtype, name="hidden")(y, train)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(y)
        return pixel_logits(y, x)


class DeepLabV3Plus(nn.Module):
    """Atrous convolutions at several rates, and a decoder that brings back the edges.

        e = ASPP(f_last),   y = [resize(e); ReLU(norm(W_low f_first))]
        logits = resize(W separable(separable(y)) + b)

    Chen, Zhu, Papandreou, Schroff, Adam: Encoder-Decoder with Atrous Separable Convolution for Semantic
    Image Segmentation. ECCV 2018. https://arxiv.org/abs/1802.02611

    Deviations from the paper and its authors' code: the backbone decides about its own dilations, and a
    ResNet of `dyn.models` has no multi-grid in its last stage; norms have torch's momentum and epsilon;
    pixels are seen as squares when features are resized (corners are not aligned); kernels start normal
    with variance 2 / fan_out. A backbone whose first stage is as large as the picture (stem 'small')
    makes the decoder run at that size.

    Parameters: `backbone/...`, `aspp/{point,pooled,project}`, `aspp/atrous<n>/{depthwise,pointwise}`,
    `low_level`, `decoder<n>/{depthwise,pointwise}`, each `conv/kernel` and `norm/{scale,bias}`; and
    `logits/{kernel,bias}`.

    Attributes:
        num_classes: number of logits of each pixel, the background's among them.
        backbone: makes the backbone, `partial(ResNet18, num_classes=None, output_stride=16)` or any
            callable whose module returns the features of its stages. It is given `name`, and `dtype`
            where there is one.
        features: features of the pyramid and the decoder; the first stage's are projected to 3/16 of
            that number, the paper's 48 of 256.
        rates: dilations of the pyramid at output stride 16. They are as wide in pixels at every stride:
            at stride 8, which is found from the shapes, they are twice as large.
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
    rates: Sequence[int] = (6, 12, 18)
    dropout: float = 0.1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits of every pixel.

        Args:
            x: pictures `[B, H, W, C]` of any size.
            train: whether norms use (and update) batch statistics, and dropout drops. Needs
                `mutable=["batch_stats"]`, the rng `dropout`, and two or more pictures.

        Returns:
            `[B, H, W, num_classes]`, in float32 or wider.

        Raises:
            ValueError: for another number of axes, for a backbone that returns no features of stages, and
                for batch statistics of a single vector: the pooled features of one picture.
        """
        stages = stage_features(self.backbone, x, train=train, dtype=self.dtype)
        first, last = stages[0], stages[-1]
        stride = downsampling(x.shape[1:3], last.shape[1:3])
        rates = [max(1, rate * 16 // stride) for rate in self.rates]
        y = ASPP(self.features, rates, dtype=self.dtype, name="aspp")(last, train)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)

        # Few, or they would outweigh the pyramid's (section 3 of the paper).
        few = max(1, self.features * 3 // 16)
        low = ConvNorm(few, 1, dtype=self.dtype, name="low_level")(first, train)
        y = jnp.concatenate([resize(y, first.shape[1:3]), low], axis=-1)
        for n in (1, 2):
            y = SeparableConv(self.features, dtype=self.dtype, name=f"decoder{n}")(y, train)
        y = nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(y)
        return pixel_logits(y, x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the same features seen at several rates, and as a whole."""

    features: int
    rates: Sequence[int]
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """`[B, h, w, C]` to `[B, h, w, features]`."""
        one = partial(ConvNorm, self.features, 1, dtype=self.dtype)
        branches = [one(name="point")(x, train)]
        for n, rate in enumerate(self.rates, start=1):
            atrous = SeparableConv(self.features, rate, dtype=self.dtype, name=f"atrous{n}")
            branches.append(atrous(x, train))
        whole = global_average(x, 2, float32_or_wider(x))[:, None, None]
        whole = one(name="pooled")(whole, train)
        branches.append(jnp.broadcast_to(whole, branches[0].shape))
        return one(name="project")(jnp.concatenate(branches, axis=-1), train)


class SeparableConv(nn.Module):
    """A 3x3 convolution of each feature by itself, and a 1x1 convolution, each with norm and ReLU."""

    features: int
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """`[B, h, w, C]` to `[B, h, w, features]`."""
        channels = x.shape[-1]
        depthwise = ConvNorm(
            channels, 3, self.dilation, groups=channels, dtype=self.dtype, name="depthwise"
        )
        return ConvNorm(self.features, 1, dtype=self.dtype, name="pointwise")(
            depthwise(x, train), train
        )


class ConvNorm(nn.Module):
    """ReLU(norm(conv(x))), of the same size."""

    features: int
    kernel_size: int
    dilation: int = 1
    groups: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """`[B, h, w, C]` to `[B, h, w, features]`."""
        y = nn.Conv(
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
                f"the batch norm of {'/'.join(self.path)} cannot normalise the one vector of a batch of "
                "size 1: its variance is zero and the output would ignore the picture. Train with two "
                "or more pictures in a batch."
            )
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm")
        # flax's norm cannot mix bfloat16 and its float32 statistics under strict promotion; it is given
        # float32, which it computes in anyway.
        return nn.relu(norm(y.astype(float32_or_wider(y))).astype(y.dtype))


def stage_features(
    backbone: Backbone, x: Array, *, train: bool, dtype: Any = None
) -> tuple[Array, ...]:
    """Makes the submodule `backbone` and applies it; call it inside a compact method.

    Args:
        backbone: makes the backbone.
        x: pictures `[B, H, W, C]`.
        train: as for the networks here.
        dtype: given to the backbone; None leaves it the one it has.

    Returns:
        The features behind each of its stages, `[B, h, w, C]`.

    Raises:
        ValueError: if x or what the backbone returns is something else, or the backbone is made already.
    """
    if x.ndim != 4:
        raise ValueError(f"the network takes pictures [B, H, W, C]; got shape {x.shape}.")
    if isinstance(backbone, nn.Module):
        raise ValueError(
            "backbone must make the backbone and not be one: instead of ResNet18(num_classes=None) "
            "write partial(ResNet18, num_classes=None)."
        )
    fields = {} if dtype is None else {"dtype": dtype}
    features = backbone(**fields, name="backbone")(x, train=train)
    if not isinstance(features, tuple | list) or any(f.ndim != 4 for f in features):
        shapes = jax.tree.map(jnp.shape, features)
        raise ValueError(
            "the backbone must return the features [B, h, w, C] behind each of its stages; what it "
            f"returned has shape {shapes}. A ResNet of dyn.models does so with num_classes=None."
        )
    return tuple(features)


def downsampling(size: Sequence[int], reduced: Sequence[int]) -> int:
    """How many times smaller features are than the picture, as a power of two.

    Each halving rounds up: 33 pixels at stride 16 are 3. Of a picture with a single feature the least
    stride is returned; there is then nothing that a dilation could reach.

    Args:
        size: `(H, W)` of the picture.
        reduced: `(h, w)` of the features.
    """
    stride = 1
    while any(math.ceil(n / stride) > max(1, m) for n, m in zip(size, reduced, strict=True)):
        stride *= 2
    return stride


def resize(x: Array, size: Sequence[int]) -> Array:
    """Bilinear interpolation of `[B, h, w, C]` to `[B, *size, C]`, pixels being squares."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")


def pixel_logits(y: Array, x: Array) -> Array:
    """Logits at the resolution of the pictures x, in float32: in bfloat16 many pixels would be tied."""
    return resize(y.astype(float32_or_wider(y)), x.shape[1:3])
