"""Dynamic MobileNet (DyMN), for spectrograms: MobileNetV3-Large whose blocks are dynamic in three ways.

Schmid, Koutini, Widmer: Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio Models.
IEEE/ACM TASLP 2024. https://arxiv.org/abs/2310.15648

Deviations from the authors' code: one or two spatial axes instead of frequency and time; the heads of the
kernels' attention start normal with variance 2 / fan_out (theirs with a standard deviation of 0.01).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.attention import ATTENTION_PRECISION, he_normal_fan_out
from dyn.layers.coordinate_attention import average_along_axes
from dyn.layers.dynamic_conv import DynamicConv
from dyn.layers.dynamic_relu import make_lines, take_largest
from dyn.layers.static_conv import Conv
from dyn.models.backbone import ConvFactory
from dyn.models.inverted_residual import (
    BlockShape,
    InvertedResidual,
    add_shortcut,
    describe_window,
    round_features,
)
from dyn.models.mobilenet_v3 import MobileNetV3
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array

_Conv = partial(DynamicConv, num_kernels=4, reduction=None)
_small_init = nn.initializers.normal(0.01)


class DyMN(MobileNetV3):
    """MobileNetV3-Large with blocks whose kernels, activations and gates look at one context of the block.

    With the block's input x, and its means m_i over all spatial axes but the i-th,

        q = hswish(norm(J [m_1; m_2])),    h = mean of q over its positions,    g_i = V_i q_i + c_i

    the context h decides the mixture of the kernels of the three convolutions, and the coefficients of a
    dynamic ReLU after the depthwise one. The gates g_i, one for each position of an axis, weight its result:

        y = P [r * sigmoid(g_1) * sigmoid(g_2)],    r = max(u (1 + t_1) + t_3 / 2,  u t_2 + t_4 / 2)
        u = norm(depthwise(act(norm(expand(x))))),    t = 2 sigmoid(W h + w) - 1 for each channel

    There is no squeeze-and-excitation. The input is `[B, mels, time, 1]`. The authors anneal the temperature
    from 30 to 1 (`dyn.schedules.two_slope_temperature`); the published networks for AudioSet (`*_as`) need a
    temperature of 1, those for ImageNet (`*_im`) 30.

    Attributes:
        num_classes: number of logits, 527 for AudioSet; the other fields are `MobileNetV2`'s. The published
            networks have a `width` of 0.4, 1 and 2.
        conv: makes the 1x1 convolutions of dynamic blocks, which take a `context`.
        depthwise: makes their depthwise convolutions, which take a `context`; None for static ones.
        dynamic_blocks: 'all', or 'replace_se' for those where MobileNetV3 has squeeze-and-excitation, the
            others being MobileNetV3's own.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.models import DyMN
        >>> net = DyMN(num_classes=527, width=0.4)
        >>> x = jax.ShapeDtypeStruct((2, 128, 100, 1), jnp.float32)
        >>> logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> logits.shape, sorted(variables)
        ((2, 527), ['attention', 'batch_stats', 'params'])
    """

    conv: ConvFactory = _Conv
    depthwise: ConvFactory | None = _Conv
    # All blocks, not the last convolution.
    dynamic_stages: Sequence[int] | None = (1, 2, 3, 4, 5, 6)
    dynamic_blocks: str = "all"

    def make_block(self, shape: BlockShape, **fields: Any) -> nn.Module:
        """Returns a block, from its sizes and the other fields of `InvertedResidual`.

        Raises:
            ValueError: for an unknown name of the dynamic blocks, and for `attention` and `context`.
        """
        if self.attention is not None or self.context != "input":
            raise ValueError(
                "DyMN's blocks already have gates and a context: leave out attention and context."
            )
        if self.dynamic_blocks not in ("all", "replace_se"):
            raise ValueError(
                f"dynamic_blocks={self.dynamic_blocks!r} is unknown: write 'all' or 'replace_se'."
            )
        if fields["takes_context"][0] and (self.dynamic_blocks == "all" or shape.squeezed):
            least, most = (round_features(n * self.width) for n in (32, 128))
            size = min(max(round_features(shape.expanded // 4), least), most)
            names = ("conv", "depthwise", "norm", "padding", "takes_context", "drop", "name")
            return DynamicBlock(shape, size, **{name: fields[name] for name in names})
        static = partial(Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal_fan_out)
        fields |= {"conv": static, "depthwise": static, "takes_context": (False, False)}
        return InvertedResidual(shape, **fields, gate=nn.hard_sigmoid)


class DynamicBlock(nn.Module):
    """An inverted residual block with a context of its own: see `DyMN`.

    Attributes:
        shape: the sizes; the activation follows the first 1x1 convolution.
        context_size: size of the context.
        conv: makes the 1x1 convolutions.
        depthwise: makes the depthwise convolution.
        norm: makes a norm.
        padding: see `Layout`.
        drop: share of the samples whose residual branch is dropped.
        takes_context: as in `InvertedResidual`; the 1x1 convolutions always take the context.
    """

    shape: BlockShape
    context_size: int
    conv: ConvFactory
    depthwise: ConvFactory
    norm: Any
    padding: str = "torch"
    drop: float = 0.0
    takes_context: tuple[bool, bool] = (True, True)

    @nn.compact
    def __call__(self, x: Array, state: Array | None = None) -> tuple[Array, Array | None]:
        """Returns `[B, *spatial / strides, features]` of `x`, `[B, *spatial, C]`, and the state as it was."""
        shape, axes = self.shape, x.ndim - 2
        make_context = BlockContext(
            self.context_size, shape.expanded, shape.strides, self.norm, name="context"
        )
        context, gates = make_context(x)
        conv1x1 = partial(self.conv, kernel_size=(1,) * axes, padding=0)
        y = x
        if shape.expanded != x.shape[-1]:
            y = conv1x1(shape.expanded, name="expand")(y, context=context)
            y = shape.activation(self.norm(name="expand_norm")(y))
        y = self.depthwise(
            shape.expanded,
            (shape.kernel,) * axes,
            shape.strides,
            **describe_window(shape, self.padding),
            name="depthwise",
        )(y, **({"context": context} if self.takes_context[1] else {}))
        y = self.norm(name="depthwise_norm")(y)
        coefficients = nn.Dense(
            4 * shape.expanded,
            kernel_init=_small_init,
            dtype=context.dtype,
            precision=ATTENTION_PRECISION,
            name="dynamic_relu",
        )(context)
        theta = 2 * nn.sigmoid(coefficients.reshape(x.shape[0], shape.expanded, 4)) - 1
        y = take_largest(y, *make_lines(theta))
        for gate in gates:
            y = y * gate.astype(y.dtype)
        y = conv1x1(shape.features, name="project")(y, context=context)
        y = self.norm(name="project_norm")(y)
        return add_shortcut(x, y, shape, self.drop), state


class BlockContext(nn.Module):
    """Computes a block's context, and its gates along each spatial axis.

    Attributes:
        features: size of the context.
        gated: number of gated features.
        strides: of the block: the gates are averaged over three positions, one each `strides`.
        norm: makes a norm.
    """

    features: int
    gated: int
    strides: int
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, list[Array]]:
        """Maps `[B, *spatial, C]` to the context `[B, features]` and the gates of each axis."""
        axes, dtype = range(1, x.ndim - 1), float32_or_wider(x)
        dense = partial(
            nn.Dense, dtype=dtype, kernel_init=he_normal_fan_out, precision=ATTENTION_PRECISION
        )
        z = dense(self.features, use_bias=False, name="joint")(average_along_axes(x, dtype))
        q = nn.hard_swish(self.norm(name="joint_norm", dtype=dtype)(z))
        gates, start = [], 0
        for axis in axes:
            part = jax.lax.slice_in_dim(q, start, start + x.shape[axis], axis=1)
            start += x.shape[axis]
            gate = nn.sigmoid(
                dense(self.gated, name=f"gate{axis}")(average_threes(part, self.strides))
            )
            gates.append(jnp.expand_dims(gate, [other for other in axes if other != axis]))
        return jnp.mean(q, 1), gates


def average_threes(z: Array, strides: int) -> Array:
    """Averages `z`, `[B, L, C]`, over three positions, with zeros around; a stride of 1 changes nothing."""
    if strides == 1:
        return z
    padded = jnp.pad(z, ((0, 0), (1, 1), (0, 0)))
    reach = z.shape[1] - 1  # of the first position of a window
    return (
        sum((padded[:, n : n + reach + 1 : strides] for n in range(3)), jnp.zeros((), z.dtype)) / 3
    )
