"""Networks of inverted residual blocks with interchangeable convolutions, and the block that they share.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks. CVPR 2018.
https://arxiv.org/abs/1801.04381
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import he_normal_fan_out, round_to_multiple
from dyn.layers.fields import CheckedModule
from dyn.layers.squeeze_excite import SqueezeExcite
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

Array = jax.Array
Activation = Callable[[Array], Array]


class BlockShape(NamedTuple):
    """Sizes of an inverted residual block.

    Attributes:
        kernel: positions of the depthwise kernel along each axis.
        expanded: features between the two 1x1 convolutions; the first one is absent if they are the input's.
        features: output features.
        strides: of the depthwise convolution.
        activation: after the first 1x1 and the depthwise convolution.
        squeezed: size of the squeezed vector of squeeze-and-excitation; 0 for none.
        dilation: of the depthwise convolution.
        shortcut: whether the input is added to the output, if they have one shape.
    """

    kernel: int
    expanded: int
    features: int
    strides: int
    activation: Activation
    squeezed: int = 0
    dilation: int = 1
    shortcut: bool = True


class Layout(NamedTuple):
    """Sizes of a network of inverted residual blocks.

    Attributes:
        stem: features of the stem.
        stages: the blocks of each stage.
        last: features of the last 1x1 convolution.
        activation: after the stem and after the last convolution.
        padding: 'torch' (symmetric) or 'same' (TensorFlow's, which is not, for strided kernels).
        epsilon: of the norms.
        momentum: share of the running statistics that a step keeps.
        drop_connect: share of the samples whose residual branch the last block drops in training; it grows
            in equal steps from 0 in the first block.
        depthwise_init: initialises the depthwise kernels.
    """

    stem: int
    stages: Sequence[Sequence[BlockShape]]
    last: int
    activation: Activation
    padding: str = "torch"
    epsilon: float = 1e-5
    momentum: float = 0.9
    drop_connect: float = 0.0
    depthwise_init: nn.initializers.Initializer = he_normal_fan_out


class InvertedResidualNet(CheckedModule):
    """A stem, stages of inverted residual blocks, a last 1x1 convolution, a classifier.

    The base of `MobileNetV2`, which describes the fields, `MobileNetV3` and `EfficientNet`.
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
    dynamic_stages: Sequence[int] | None = None
    first_conv: ConvFactory | None = None
    max_blocks: int | None = None
    norm: Callable[..., nn.Module] | None = None
    attention: Callable[..., nn.Module] | None = None
    context: str = "input"
    representation: int = 64
    output_stride: int | None = None

    def make_layout(self) -> Layout:
        """Returns the sizes of the network."""
        raise NotImplementedError

    def make_block(self, shape: BlockShape, **fields: Any) -> nn.Module:
        """Returns a block, from its sizes and the other fields of `InvertedResidual`."""
        return InvertedResidual(shape, **fields)

    def apply_head(self, x: Array, train: bool) -> Array:
        """Returns the logits of the pooled features `[B, C]`."""
        x = Dropout(self.dropout, deterministic=not train)(x)
        if self.num_classes == 0:
            return x
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, head_only: bool = False
    ) -> Array | tuple[Array, ...]:
        """Returns the logits or the features of `x`, `[B, *spatial, C]`; the arguments are `ResNet`'s."""
        check_input(x, self.spatial_axes, self.stem)
        layout, axes = self.make_layout(), self.spatial_axes
        if self.max_blocks is not None:
            if self.max_blocks < 1:
                raise ValueError(
                    f"max_blocks={self.max_blocks} must be at least 1, or None for all."
                )
            # The blocks after the first of a stage have its features.
            layout = layout._replace(stages=[blocks[: self.max_blocks] for blocks in layout.stages])
        trains = train and not head_only
        norm = make_norms(
            self.norm, trains, self.dtype, epsilon=layout.epsilon, momentum=layout.momentum
        )
        fields: dict[str, Any] = {"use_bias": False, "dtype": self.dtype}
        fields["kernel_init"] = he_normal_fan_out
        static = partial(Conv, **fields)
        conv = bind_fields(self.conv, **fields)
        first_conv = bind_fields(self.first_conv or Conv, **fields)
        fields["kernel_init"] = layout.depthwise_init
        depthwise = bind_fields(self.depthwise or Conv, **fields)
        static_depthwise = partial(Conv, **fields)
        last_stage = len(layout.stages) + 1  # the last convolution counts as one
        dynamic = self.dynamic_stages
        if dynamic is None:
            dynamic = range(1, last_stage + 1)
        if unknown := set(dynamic) - set(range(1, last_stage + 1)):
            raise ValueError(
                f"dynamic_stages={tuple(dynamic)} has {min(unknown)}: the network has the stages 1 to "
                f"{last_stage}, the last of which is its last convolution."
            )

        x = first_conv(
            layout.stem,
            (3,) * axes,
            2 if self.stem == "imagenet" else 1,
            padding=find_padding(3, layout.padding),
            name="stem_conv",
        )(x)
        x = layout.activation(norm(name="stem_norm")(x))

        stages = layout.stages
        if self.stem == "small":
            first, *others = stages[1]
            stages = [stages[0], [first._replace(strides=1), *others], *stages[2:]]
        stride = 2 if self.stem == "imagenet" else 1
        check_output_stride(self.output_stride, stride)
        if self.output_stride:
            stages = dilate_stages(stages, stride, self.output_stride)
        context_fn = make_context_fn(self.context, self.representation, axes)
        state = None
        features = []
        count, number = sum(map(len, stages)), 0
        for stage, blocks in enumerate(stages, 1):
            for block, shape in enumerate(blocks, 1):
                module = self.make_block(
                    shape,
                    conv=conv if stage in dynamic else static,
                    depthwise=depthwise if stage in dynamic else static_depthwise,
                    norm=norm,
                    padding=layout.padding,
                    context_fn=context_fn,
                    takes_context=(stage in dynamic, stage in dynamic and bool(self.depthwise)),
                    attention=self.attention,
                    drop=layout.drop_connect * number / count if trains else 0.0,
                    name=f"stage{stage}_block{block}",
                )
                x, state = call_block(module, self.remat, x, state)
                number += 1
            features.append(x)
        last, extra_inputs = static, {}
        if last_stage in dynamic:
            last, (extra_inputs, _) = conv, context_fn("last_conv", x, x, state)
        x = last(layout.last, (1,) * axes, padding=0, name="last_conv")(x, **extra_inputs)
        x = layout.activation(norm(name="last_norm")(x))
        if self.num_classes is None:
            return (*features, x)
        return self.apply_head(jnp.mean(x, axis=tuple(range(1, axes + 1))), train)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that expands, a depthwise one, a linear 1x1 that projects; a shortcut.

    Attributes:
        shape: the sizes.
        conv: makes the 1x1 convolutions.
        depthwise: makes the depthwise convolution.
        norm: makes a norm.
        padding: see `Layout`.
        context_fn: computes the extra inputs of the convolutions, unless there is a `router`.
        takes_context: whether the 1x1 convolutions and the depthwise one have them; static ones do not.
        attention: makes a layer after the last norm; None for no such layer.
        drop: share of the samples whose residual branch is dropped.
        router: makes the module `routing`, from the mean of the block's input over space to logits, which
            dynamic convolutions share as their `router`; None for no such module.
        gate: of squeeze-and-excitation.
        squeeze_activation: after the first layer of squeeze-and-excitation.
    """

    shape: BlockShape
    conv: ConvFactory
    depthwise: ConvFactory
    norm: Callable[..., nn.Module]
    padding: str = "torch"
    context_fn: ContextFn = compute_extra_inputs
    takes_context: tuple[bool, bool] = (True, True)
    attention: Callable[..., nn.Module] | None = None
    drop: float = 0.0
    router: Callable[..., nn.Module] | None = None
    gate: Activation = nn.sigmoid
    squeeze_activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: Array, state: Array | None = None) -> tuple[Array, Array | None]:
        """Returns `[B, *spatial / strides, features]` of `x`, `[B, *spatial, C]`, and the state after it."""
        shape, axes = self.shape, x.ndim - 2
        context_fn, shared = self.context_fn, {}
        if self.router is not None and any(self.takes_context):
            context_fn = partial(compute_extra_inputs, context="block")
            shared = {"router": self.router(name="routing")}
        points, window = self.takes_context

        def apply(make: ConvFactory, takes: bool, name: str, y: Array, state: Array | None):
            if not takes:
                return make(name=name)(y), state
            extra_inputs, state = context_fn(f"{self.name}_{name}", x, y, state)
            return make(name=name, **shared)(y, **extra_inputs), state

        conv1x1 = partial(self.conv, kernel_size=(1,) * axes, padding=0)
        y = x
        if shape.expanded != x.shape[-1]:
            y, state = apply(partial(conv1x1, shape.expanded), points, "expand", y, state)
            y = shape.activation(self.norm(name="expand_norm")(y))
        depthwise = partial(
            self.depthwise,
            shape.expanded,
            (shape.kernel,) * axes,
            shape.strides,
            **describe_window(shape, self.padding),
        )
        y, state = apply(depthwise, window, "depthwise", y, state)
        y = shape.activation(self.norm(name="depthwise_norm")(y))
        if shape.squeezed:
            y = SqueezeExcite(
                0.0,
                shape.squeezed,
                activation=self.squeeze_activation,
                gate=self.gate,
                name="squeeze_excite",
            )(y)
        y, state = apply(partial(conv1x1, shape.features), points, "project", y, state)
        y = self.norm(name="project_norm")(y)
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        return add_shortcut(x, y, shape, self.drop), state


def add_shortcut(x: Array, y: Array, shape: BlockShape, drop: float = 0.0) -> Array:
    """Adds a block's input to its residual branch, if there is a shortcut; call it in a compact method.

    Args:
        x: the block's input.
        y: the residual branch, dropped for a share `drop` of the samples.
        shape: the sizes of the block; only one without strides has a shortcut.
        drop: the share. The branch of the other samples is divided by `1 - drop`.
    """
    if shape.strides != 1 or not shape.shortcut or x.shape != y.shape:
        return y
    if drop:
        y = Dropout(drop, tuple(range(1, y.ndim)), deterministic=False)(y)
    return x + y


def dilate_stages(
    stages: Sequence[Sequence[BlockShape]], stride: int, output_stride: int
) -> list[list[BlockShape]]:
    """Returns the blocks of each stage, dilated where strides would exceed an output stride.

    The block that does not stride any more sees features that are not yet thinned out, so that only those
    after it are dilated; and it has no shortcut, as before.

    Args:
        stages: the blocks.
        stride: of the stem.
        output_stride: largest ratio of the input's size to that of the last features.
    """
    dilation, dilated = 1, []
    for blocks in stages:
        dilated.append([])
        for shape in blocks:
            if stride * shape.strides > output_stride:
                dilated[-1].append(shape._replace(strides=1, dilation=dilation, shortcut=False))
                dilation *= shape.strides
            else:
                dilated[-1].append(shape._replace(dilation=dilation))
                stride *= shape.strides
    return dilated


def describe_window(shape: BlockShape, padding: str) -> dict[str, Any]:
    """Returns the fields of a block's depthwise convolution, beside its size and strides."""
    fields: dict[str, Any] = {
        "padding": find_padding(shape.kernel, padding, shape.dilation),
        "feature_group_count": shape.expanded,
    }
    # Not every layer can be dilated.
    return fields | ({"kernel_dilation": shape.dilation} if shape.dilation > 1 else {})


def find_padding(kernel: int, padding: str, dilation: int = 1) -> int | str:
    """Returns the padding of a convolution of odd size.

    Raises:
        ValueError: for another name than 'torch' or 'same'.
    """
    match padding:
        case "torch":
            return dilation * (kernel - 1) // 2
        case "same":
            return "SAME"
    raise ValueError(f"padding={padding!r} is unknown: write 'torch' or 'same'.")


def round_features(exact: float) -> int:
    """Rounds to a multiple of 8: at least 8, and at most a tenth less."""
    return round_to_multiple(exact, 8, 0.9)
