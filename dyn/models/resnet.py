"""Residual networks in 1-D and 2-D with interchangeable block convolutions.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016. https://arxiv.org/abs/1512.03385

Padding is symmetric as in torch ('SAME' is not, for strided kernels), the stride of a bottleneck sits in
its 3x3 convolution, and norms have torch's momentum and epsilon, so that published weights fit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

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
    check_output_stride,
    make_norms,
)
from dyn.models.contexts import ContextFn, compute_extra_inputs, make_context_fn
from dyn.models.dropout import Dropout
from dyn.ops.max_pool import max_pool

Array = jax.Array


class ResNet(CheckedModule):
    """A residual network: stem, four stages of blocks, global average, linear classifier.

    `conv` makes every convolution of the blocks' residual branches; those of the stem stay static, and
    those of the shortcuts too unless `shortcut` is set, as in the papers of the dynamic layers.

    Attributes:
        stage_sizes: number of blocks in each stage.
        block: `BasicBlock` or `Bottleneck`.
        num_classes: number of logits; 0 for the pooled features, the classifier's inputs; None for the
            features after each stage, for a head such as those of `dyn.models.segmentation`.
        conv: makes a block convolution: `dyn.layers.Conv`, `partial(ODConv, num_kernels=4)`, or any callable
            with `nn.Conv`'s arguments.
        shortcut: makes the 1x1 convolutions of the shortcuts; None for static ones.
        attention: makes a layer that follows the last norm of every block's residual branch, for instance
            `SqueezeExcite` or `CBAM`; None for no such layer.
        activation: makes what stands for each ReLU of the blocks, for instance `DynamicReLU`; None for
            ReLU.
        dense: makes the classifier, a callable with `nn.Dense`'s arguments such as `DCDDense`.
        width: features of the first stage; each later stage has twice as many.
        stem: 'imagenet' (7x7, stride 2, max pooling), 'deep' (three of 3x3 instead of 7x7, as in timm's 'd'
            variants, which also have `shortcut=PooledConv`) or 'small' (3x3, stride 1) for pictures below
            about 100 pixels and for short series; or a callable that makes a module with a stride of 4, such
            as `RedNetStem`: `stem(width, norm=..., dtype=..., name=...)`.
        spatial_axes: 2 for pictures `[B, H, W, C]`, 1 for series `[B, L, C]`.
        dropout: share of the pooled features dropped before the classifier in training.
        dtype: dtype of the computation; None for the inputs'.
        context: the context of the block convolutions' attention: 'input', the default of each layer (and
            the only choice for `nn.Conv`); 'block', the mean of the block's input, the same for all its
            convolutions; 'carried', a state that `KernelRepresentation` carries from convolution to
            convolution; 'carried_pixels', that state and the convolution's input at each pixel, for
            pixel-wise layers.
        representation: size of the carried state.
        output_stride: largest ratio of the input's size to that of the last features. A stage that
            would exceed it dilates its kernels instead of striding; None for no limit.
        remat: memory for time: True keeps only the input of each block for the backward pass, which computes
            the block again; a policy keeps more, such as `jax.checkpoint_policies.dots_saveable` the
            results of convolutions and products. False computes nothing twice.
        norm: makes a norm in place of each batch norm, `partial(GroupNorm, num_groups=32)` or any callable
            that takes `dtype` and `name`; None for batch norms.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import ResNet18
        >>> net = ResNet18(num_classes=10, width=8, stem="small", conv=partial(ODConv, num_kernels=2))
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = jax.jit(net.init)(jax.random.key(0), x)
        >>> jax.jit(net.apply)(variables, x).shape
        (2, 10)
    """

    stage_sizes: Sequence[int]
    block: Callable[..., nn.Module]
    num_classes: int | None
    conv: ConvFactory = Conv
    shortcut: ConvFactory | None = None
    attention: Callable[..., nn.Module] | None = None
    activation: Callable[..., nn.Module] | None = None
    dense: Callable[..., nn.Module] = nn.Dense
    width: int = 64
    stem: str | Callable[..., nn.Module] = "imagenet"
    spatial_axes: int = 2
    dropout: float = 0.0
    dtype: Any = None
    context: str = "input"
    representation: int = 64
    output_stride: int | None = None
    remat: Remat = False
    norm: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, head_only: bool = False
    ) -> Array | tuple[Array, ...]:
        """Returns the logits `[B, num_classes]` of `x`, `[B, *spatial, C]`, or the features of each stage.

        Args:
            x: pictures or series, channels last.
            train: whether norms use (and update) batch statistics, and dropout drops. Needs
                `mutable=["batch_stats"]`, and the rng `dropout` if there is any.
            head_only: whether only `head` trains: everything below it then runs as in inference.
        """
        check_input(x, self.spatial_axes, self.stem, ("imagenet", "deep", "small"))
        axes = self.spatial_axes
        norm = make_norms(self.norm, train and not head_only, self.dtype)
        fields = {"use_bias": False, "dtype": self.dtype}
        static = partial(Conv, **fields, kernel_init=he_normal_fan_out)

        x = self.apply_stem(x, norm, static)
        stride = 1 if self.stem == "small" else 4
        check_output_stride(self.output_stride, stride)

        conv = bind_fields(self.conv, **fields)
        shortcut = static if self.shortcut is None else bind_fields(self.shortcut, **fields)
        context_fn = make_context_fn(self.context, self.representation, axes)
        state = None
        features = []
        dilation = 1
        for stage, num_blocks in enumerate(self.stage_sizes):
            strides = 1 if stage == 0 else 2
            # The strided convolution sees features that are not yet thinned out.
            first_dilation = dilation
            if self.output_stride and stride * strides > self.output_stride:
                dilation *= strides
                strides = 1
            stride *= strides
            for block in range(num_blocks):
                module = self.block(
                    features=self.width * 2**stage,
                    strides=strides if block == 0 else 1,
                    dilations=(first_dilation if block == 0 else dilation, dilation),
                    conv=conv,
                    shortcut=shortcut,
                    norm=norm,
                    context_fn=context_fn,
                    attention=self.attention,
                    activation=self.activation,
                    static=static,
                    name=f"stage{stage + 1}_block{block + 1}",
                )
                x, state = call_block(module, self.remat, x, state)
            features.append(x)
        if self.num_classes is None:
            return tuple(features)

        x = jnp.mean(x, axis=tuple(range(1, axes + 1)))
        x = Dropout(self.dropout, deterministic=not train)(x)
        if self.num_classes == 0:
            return x
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)

    def apply_stem(
        self, x: Array, norm: Callable[..., nn.Module], conv: Callable[..., nn.Module]
    ) -> Array:
        """Applies the stem, whose norms `norm` makes and whose convolutions `conv`."""
        if not isinstance(self.stem, str):
            return self.stem(self.width, norm=norm, dtype=self.dtype, name="stem")(x)
        three, width = (3,) * self.spatial_axes, self.width
        if self.stem == "small":
            x = conv(width, three, 1, padding=1, name="stem_conv")(x)
            return nn.relu(norm(name="stem_norm")(x))
        if self.stem == "deep":
            for n, strides in ((1, 2), (2, 1)):
                x = conv(width // 2, three, strides, padding=1, name=f"stem_conv{n}")(x)
                x = nn.relu(norm(name=f"stem_norm{n}")(x))
            x = conv(width, three, 1, padding=1, name="stem_conv3")(x)
        else:
            x = conv(width, (7,) * self.spatial_axes, 2, padding=3, name="stem_conv")(x)
        return max_pool(nn.relu(norm(name="stem_norm")(x)), three, 2, padding=1)


class ResidualBlock(nn.Module):
    """A branch of convolutions with norms, and a shortcut; the base of the two kinds of blocks.

    Attributes:
        features: features of the 3x3 convolutions.
        strides: stride of the block.
        conv: makes a convolution of the branch.
        shortcut: makes the 1x1 convolution of the shortcut.
        norm: makes a norm.
        dilations: of the strided 3x3 convolution, and of those after it.
        context_fn: computes the extra inputs of the branch's convolutions.
        attention: as in `ResNet`.
        activation: as in `ResNet`.
        static: makes the branch's other convolutions, if `conv` does not make all.
        groups: groups of the 3x3 convolutions.
    """

    # The number of the only convolution that `conv` makes, with norms of its own; None if it makes all.
    selective: ClassVar[int | None] = None

    features: int
    strides: int
    conv: ConvFactory
    shortcut: ConvFactory
    norm: Callable[..., nn.Module]
    dilations: tuple[int, int] = (1, 1)
    context_fn: ContextFn = compute_extra_inputs
    attention: Callable[..., nn.Module] | None = None
    activation: Callable[..., nn.Module] | None = None
    static: ConvFactory = Conv
    groups: int = 1

    def _list_convolutions(self) -> Sequence[tuple[int, int, int, int]]:
        """Lists features, kernel size, stride and dilation of the branch's convolutions."""
        raise NotImplementedError

    def _activate(self, number: int, x: Array) -> Array:
        """Applies ReLU, or what stands for it after a convolution of the branch or after the sum."""
        return nn.relu(x) if self.activation is None else self.activation(name=f"relu{number}")(x)

    @nn.compact
    def __call__(self, x: Array, state: Array | None = None) -> tuple[Array, Array | None]:
        """Returns `[B, *spatial / strides, O]` of `x`, `[B, *spatial, C]`, and the state after the block."""
        axes = x.ndim - 2
        convolutions = self._list_convolutions()
        y = x
        for n, (features, size, strides, dilation) in enumerate(convolutions, start=1):
            extra_inputs = {}
            make = self.static
            if self.selective in (None, n):
                extra_inputs, state = self.context_fn(f"{self.name}_conv{n}", x, y, state)
                make = self.conv
            conv = make(
                features,
                kernel_size=(size,) * axes,
                strides=strides,
                padding=dilation * (size // 2),
                # Not every layer can be dilated, or grouped.
                **({"kernel_dilation": dilation} if dilation > 1 else {}),
                **({"feature_group_count": self.groups} if size > 1 and self.groups > 1 else {}),
                name=f"conv{n}",
            )
            y = conv(y, **extra_inputs)
            if n != self.selective:
                y = self.norm(name=f"norm{n}")(y)
                y = self._activate(n, y) if n < len(convolutions) else y
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        if x.shape != y.shape:
            project = self.shortcut(
                y.shape[-1], (1,) * axes, self.strides, padding=0, name="downsample_conv"
            )
            x = self.norm(name="downsample_norm")(project(x))
        return self._activate(len(convolutions), y + x), state


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut; O = features."""

    def _list_convolutions(self) -> Sequence[tuple[int, int, int, int]]:
        return (
            (self.features, 3, self.strides, self.dilations[0]),
            (self.features, 3, 1, self.dilations[1]),
        )


class Bottleneck(ResidualBlock):
    """1x1, 3x3 (strided) and 1x1 convolutions, and a shortcut; O = 4 * features.

    ResNeXt-50 32x4d has `block=partial(Bottleneck, groups=32, group_width=4)`.

    Attributes:
        group_width: features of each group per 64 features of the block.
    """

    group_width: int = 64

    def _list_convolutions(self) -> Sequence[tuple[int, int, int, int]]:
        inner = self.features * self.group_width // 64 * self.groups
        return (
            (inner, 1, 1, 1),
            (inner, 3, self.strides, self.dilations[0]),
            (4 * self.features, 1, 1, 1),
        )


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck)
