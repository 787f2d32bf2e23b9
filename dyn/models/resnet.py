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

from dyn.layers.attention import global_average, he_normal_fan_out
from dyn.layers.kernel_representation import KernelRepresentation, beside
from dyn.layers.static_conv import Conv as StaticConv
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.max_pool import max_pool

Array = jax.Array
Conv = Callable[..., nn.Module]
"""`conv(features, kernel_size, strides, padding=..., use_bias=..., dtype=..., name=...)`, as `nn.Conv`."""


class ResNet(nn.Module):
    """A residual network: stem, four stages of blocks, global average, linear classifier.

    `conv` makes every convolution of the blocks' residual branches; those of the stem stay static, and
    those of the shortcuts too unless `shortcut` is given, as in the papers of the dynamic layers.

    Attributes:
        stage_sizes: number of blocks in each stage.
        block: `BasicBlock` or `Bottleneck`.
        num_classes: number of logits; None for no classifier: the network then returns the features
            behind each stage, for a head of its own such as those of `dyn.models.segmentation`.
        conv: makes a block convolution: `dyn.layers.Conv`, `partial(ODConv, num_kernels=4)`, or any callable
            with `nn.Conv`'s arguments.
        shortcut: makes the 1x1 convolutions of the shortcuts; None for static ones.
        attention: makes what stands behind the last norm of every block's residual branch, for instance
            `SqueezeExcite` or `CBAM`; None for nothing.
        dense: makes the classifier, a callable with `nn.Dense`'s arguments such as `DCDDense`.
        width: features of the first stage; each later stage has twice as many.
        stem: 'imagenet' (7x7, stride 2, max pooling) or 'small' (3x3, stride 1) for pictures below
            about 100 pixels and for short series.
        spatial_axes: 2 for pictures `[B, H, W, C]`, 1 for series `[B, L, C]`.
        dropout: share of the pooled features dropped before the classifier in training.
        dtype: dtype of the computation; None for the inputs'.
        context: what the attention of the block convolutions looks at: 'input', whatever the layer takes
            by itself (and all that `nn.Conv` can do); 'block', the mean of the block's input, the same
            for all its convolutions; 'carried', a state carried from convolution to convolution by
            `KernelRepresentation`; 'carried_pixels', that state beside the convolution's input at each
            place, for pixel-wise layers.
        representation: size of the carried state.
        output_stride: how many times smaller the last features are than the input, at most. A stage that
            would go beyond dilates its kernels instead of striding; None never does.

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
    num_classes: int | None
    conv: Conv = StaticConv
    shortcut: Conv | None = None
    attention: Callable[..., nn.Module] | None = None
    dense: Callable[..., nn.Module] = nn.Dense
    width: int = 64
    stem: str = "imagenet"
    spatial_axes: int = 2
    dropout: float = 0.0
    dtype: Any = None
    context: str = "input"
    representation: int = 64
    output_stride: int | None = None

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
        norm = partial(
            nn.BatchNorm,
            use_running_average=head_only or not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        static = partial(
            StaticConv, use_bias=False, dtype=self.dtype, kernel_init=he_normal_fan_out
        )

        if self.stem == "imagenet":
            x = static(self.width, (7,) * axes, 2, padding=3, name="stem_conv")(x)
            x = nn.relu(norm(name="stem_norm")(x))
            x = max_pool(x, (3,) * axes, 2, padding=1)
        elif self.stem == "small":
            x = static(self.width, (3,) * axes, 1, padding=1, name="stem_conv")(x)
            x = nn.relu(norm(name="stem_norm")(x))
        else:
            raise ValueError(f"stem={self.stem!r} is unknown: write 'imagenet' or 'small'.")

        branch = {"use_bias": False, "dtype": self.dtype}
        look, state = self._look(), None
        stride, dilation = 4 if self.stem == "imagenet" else 1, 1
        features = []
        for stage, blocks in enumerate(self.stage_sizes):
            strides, before = 1 if stage == 0 else 2, dilation
            if self.output_stride and stride * strides > self.output_stride:
                strides, dilation = 1, dilation * strides
            stride *= strides
            for block in range(blocks):
                x, state = self.block(
                    features=self.width * 2**stage,
                    strides=strides if block == 0 else 1,
                    # What would have strided sees features that are not thinned out yet.
                    dilations=(before if block == 0 else dilation, dilation),
                    conv=partial(self.conv, **branch),
                    shortcut=static if self.shortcut is None else partial(self.shortcut, **branch),
                    norm=norm,
                    look=look,
                    attention=self.attention,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, state)
            features.append(x)
        if self.num_classes is None:
            return tuple(features)

        x = jnp.mean(x, axis=tuple(range(1, axes + 1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)

    def _look(self) -> "Look":
        """What the blocks ask for the context of their convolutions."""
        match self.context:
            case "input":
                return _own_input
            case "block":
                return _block_input
            case "carried" | "carried_pixels":
                return partial(
                    _carried,
                    representation=KernelRepresentation(
                        self.representation, spatial_axes=self.spatial_axes, name="representation"
                    ),
                    pixels=self.context == "carried_pixels",
                )
        raise ValueError(
            f"context={self.context!r} is unknown: write 'input', 'block', 'carried' or "
            "'carried_pixels'."
        )


Look = Callable[[str, Array, Array, Array | None], tuple[dict[str, Array], Array | None]]
"""`look(layer, block_input, x, state)`: what a convolution takes beside its input x, and the next state."""


def _own_input(
    layer: str, block_input: Array, x: Array, state: None
) -> tuple[dict[str, Array], None]:
    return {}, None


def _block_input(
    layer: str, block_input: Array, x: Array, state: None
) -> tuple[dict[str, Array], None]:
    mean = global_average(block_input, block_input.ndim - 2, float32_or_wider(block_input))
    return {"context": mean}, None


def _carried(
    layer: str,
    block_input: Array,
    x: Array,
    state: Array | None,
    *,
    representation: KernelRepresentation,
    pixels: bool,
) -> tuple[dict[str, Array], Array]:
    state = representation(x, state, layer=layer)
    return {"context": beside(x, state) if pixels else state}, state


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    strides: int
    conv: Conv
    shortcut: Conv
    norm: Callable[..., nn.Module]
    dilations: tuple[int, int] = (1, 1)  # of the strided 3x3 convolution, and of those behind it
    look: Look = _own_input
    attention: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Array, state: Array | None = None) -> tuple[Array, Array | None]:
        """`[B, *spatial, C]` to `[B, *spatial / strides, features]`, and the state behind the block."""
        three = partial(self.conv, kernel_size=(3,) * (x.ndim - 2))
        first, second = (_dilated(dilation) for dilation in self.dilations)
        given, state = self.look(f"{self.name}_conv1", x, x, state)
        y = three(self.features, strides=self.strides, **first, name="conv1")(x, **given)
        y = nn.relu(self.norm(name="norm1")(y))
        given, state = self.look(f"{self.name}_conv2", x, y, state)
        y = three(self.features, strides=1, **second, name="conv2")(y, **given)
        y = self.norm(name="norm2")(y)
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        return nn.relu(y + _shortcut(self, x, y)), state


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions with four times the features, and a shortcut."""

    features: int
    strides: int
    conv: Conv
    shortcut: Conv
    norm: Callable[..., nn.Module]
    dilations: tuple[int, int] = (1, 1)  # of the strided 3x3 convolution, and of those behind it
    look: Look = _own_input
    attention: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Array, state: Array | None = None) -> tuple[Array, Array | None]:
        """`[B, *spatial, C]` to `[B, *spatial / strides, 4 * features]`, and the state behind it."""
        axes = x.ndim - 2
        one = partial(self.conv, kernel_size=(1,) * axes, strides=1, padding=0)
        three = partial(self.conv, kernel_size=(3,) * axes, **_dilated(self.dilations[0]))
        given, state = self.look(f"{self.name}_conv1", x, x, state)
        y = one(self.features, name="conv1")(x, **given)
        y = nn.relu(self.norm(name="norm1")(y))
        given, state = self.look(f"{self.name}_conv2", x, y, state)
        y = three(self.features, strides=self.strides, name="conv2")(y, **given)
        y = nn.relu(self.norm(name="norm2")(y))
        given, state = self.look(f"{self.name}_conv3", x, y, state)
        y = one(4 * self.features, name="conv3")(y, **given)
        y = self.norm(name="norm3")(y)
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        return nn.relu(y + _shortcut(self, x, y)), state


def _dilated(dilation: int) -> dict[str, int]:
    """The padding that keeps the size of a 3x3 convolution, and its dilation where there is any."""
    return {"padding": 1} if dilation == 1 else {"padding": dilation, "kernel_dilation": dilation}


def _shortcut(block: BasicBlock | Bottleneck, x: Array, y: Array) -> Array:
    """The input itself, or a strided 1x1 projection of it where the shape changes."""
    if x.shape == y.shape:
        return x
    one = (1,) * (x.ndim - 2)
    x = block.shortcut(y.shape[-1], one, block.strides, padding=0, name="downsample_conv")(x)
    return block.norm(name="downsample_norm")(x)


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
