"""ConvNeXt with interchangeable convolutions.

Liu, Mao, Wu, Feichtenhofer, Darrell, Xie: A ConvNet for the 2020s. CVPR 2022.
https://arxiv.org/abs/2201.03545

Sizes, norms and biases are those of the paper and of torchvision. Left out: stochastic depth.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dyn.layers.fields import CheckedModule
from dyn.layers.norms import LayerNorm
from dyn.layers.static_conv import Conv
from dyn.models.backbone import ConvFactory, Remat, bind_fields, call_block, check_input
from dyn.models.dropout import Dropout
from dyn.ops.dtypes import broadcast_weights

Array = jax.Array

_init = nn.initializers.truncated_normal(0.02)


class ConvNeXt(CheckedModule):
    """A stem of patches, four stages of depthwise blocks between layer norms, a linear classifier.

    `conv` makes the blocks' 1x1 convolutions, in which nearly all parameters are, `depthwise` the 7x7 ones
    and `strided` those of the stem and between the stages.

    Attributes:
        num_classes: number of logits; 0 for the classifier's inputs; None for the features after each
            stage.
        conv: makes a 1x1 convolution: `dyn.layers.Conv`, `partial(ODConv, num_kernels=4)`, or any callable
            with `nn.Conv`'s arguments.
        depthwise: makes the 7x7 convolutions, which take `feature_group_count`; None for static ones.
        strided: makes the convolutions that reduce the size; None for static ones.
        dense: makes the classifier, a callable with `nn.Dense`'s arguments such as `DynamicDense`.
        stage_sizes: number of blocks in each stage.
        width: features of the first stage; each later stage has twice as many.
        stem: 'imagenet' (patches of 4x4) or 'small' (3x3, stride 1) for pictures below about 100 pixels and
            for short series.
        spatial_axes: 2 for pictures `[B, H, W, C]`, 1 for series `[B, L, C]`.
        dropout: share of the pooled features dropped before the classifier in training.
        dtype: dtype of the computation; None for the inputs'.
        remat: results of the blocks that the backward pass computes again; see `ResNet`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import ODConv
        >>> from dyn.models import ConvNeXt
        >>> odconv = partial(ODConv, num_kernels=2)
        >>> net = ConvNeXt(num_classes=10, width=8, stage_sizes=(1, 1), conv=odconv)
        >>> x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        >>> logits, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> logits.shape
        (2, 10)
    """

    num_classes: int | None
    conv: ConvFactory = Conv
    depthwise: ConvFactory | None = None
    strided: ConvFactory | None = None
    dense: Callable[..., nn.Module] = nn.Dense
    stage_sizes: Sequence[int] = (3, 3, 9, 3)
    width: int = 96
    stem: str = "imagenet"
    spatial_axes: int = 2
    dropout: float = 0.0
    dtype: Any = None
    remat: Remat = False

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, head_only: bool = False
    ) -> Array | tuple[Array, ...]:
        """Returns the logits or the features of `x`, `[B, *spatial, C]`; the arguments are `ResNet`'s."""
        del head_only  # nothing but dropout depends on training
        check_input(x, self.spatial_axes, self.stem)
        axes = self.spatial_axes
        fields = {"dtype": self.dtype, "kernel_init": _init}
        conv, depthwise, strided = (
            bind_fields(make or Conv, **fields)
            for make in (self.conv, self.depthwise, self.strided)
        )
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        size, strides, padding = (4, 4, 0) if self.stem == "imagenet" else (3, 1, 1)
        x = strided(self.width, (size,) * axes, strides, padding=padding, name="stem_conv")(x)
        x = norm(name="stem_norm")(x)
        features = []
        for stage, blocks in enumerate(self.stage_sizes, 1):
            if stage > 1:
                x = norm(name=f"stage{stage}_norm")(x)
                width = self.width * 2 ** (stage - 1)
                x = strided(width, (2,) * axes, 2, padding=0, name=f"stage{stage}_conv")(x)
            for block in range(1, blocks + 1):
                module = ConvNeXtBlock(conv, depthwise, norm, name=f"stage{stage}_block{block}")
                x = call_block(module, self.remat, x)
            features.append(x)
        if self.num_classes is None:
            return tuple(features)

        x = norm(name="last_norm")(jnp.mean(x, axis=tuple(range(1, axes + 1))))
        x = Dropout(self.dropout, deterministic=not train)(x)
        if self.num_classes == 0:
            return x
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)


class ConvNeXtBlock(nn.Module):
    """x + scale * project(gelu(expand(norm(depthwise(x))))), with four times the features in between."""

    conv: ConvFactory
    depthwise: ConvFactory
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[B, *spatial, C]` to the same shape."""
        axes, features = x.ndim - 2, x.shape[-1]
        conv1x1 = partial(self.conv, kernel_size=(1,) * axes, padding=0)
        y = self.depthwise(
            features, (7,) * axes, padding=3, feature_group_count=features, name="depthwise"
        )(x)
        y = conv1x1(4 * features, name="expand")(self.norm(name="norm")(y))
        y = conv1x1(features, name="project")(nn.gelu(y, approximate=False))
        scale = self.param("scale", nn.initializers.constant(1e-6), (features,), jnp.float32)
        return x + y * broadcast_weights(lax.broadcast_to_rank(scale, y.ndim), y)
