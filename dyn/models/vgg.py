"""VGG-16 with interchangeable convolutions.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition. ICLR 2015.
https://arxiv.org/abs/1409.1556

As in torchvision, convolutions have biases and no norms, and pictures may have any size: their features are
averaged to 7x7 before the fully connected layers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.attention import he_normal_fan_out
from dyn.layers.dcd_conv import bin_averages
from dyn.layers.fields import CheckedModule
from dyn.layers.static_conv import Conv
from dyn.models.backbone import ConvFactory, check_input
from dyn.models.dropout import Dropout
from dyn.ops.dtypes import float32_or_wider
from dyn.ops.max_pool import max_pool

Array = jax.Array


class VGG(CheckedModule):
    """A plain network: five stages of 3x3 convolutions with max pooling, three fully connected layers.

    `conv` makes every convolution but the first, as in the published dynamic VGG-16: the first one sees the
    raw picture, whose mean says little, and stays static. Without norms a network of this depth learns only
    if each layer keeps the scale of its inputs, so all kernels are initialised as He et al. propose.

    Attributes:
        stage_sizes: number of convolutions in each stage.
        num_classes: number of logits; 0 for the classifier's inputs; None for the features of each stage.
        conv: makes a convolution: `dyn.layers.Conv`, `partial(ODConv, num_kernels=4)`, or any callable
            with `nn.Conv`'s arguments.
        dense: makes the last fully connected layer, a callable with `nn.Dense`'s arguments such as
            `DCDDense`.
        width: features of the first stage; each later stage has twice as many, up to eight times, and the
            fully connected layers have 64 times as many.
        stem: 'imagenet' (max pooling after every stage) or 'small' (none after the first two) for pictures
            below about 100 pixels and for short series.
        spatial_axes: 2 for pictures `[B, H, W, C]`, 1 for series `[B, L, C]`.
        dropout: share of each fully connected layer's outputs dropped in training; 0.5 is the paper's.
        dtype: dtype of the computation; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import DCDConv, DCDDense
        >>> from dyn.models import VGG16
        >>> net = VGG16(num_classes=10, width=4, conv=partial(DCDConv, pool=1), dense=DCDDense)
        >>> x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        >>> logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> logits.shape
        (2, 10)
    """

    stage_sizes: Sequence[int]
    num_classes: int | None
    conv: ConvFactory = Conv
    dense: Callable[..., nn.Module] = nn.Dense
    width: int = 64
    stem: str = "imagenet"
    spatial_axes: int = 2
    dropout: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, head_only: bool = False
    ) -> Array | tuple[Array, ...]:
        """Returns the logits or the features of `x`, `[B, *spatial, C]`.

        Args:
            x: pictures or series, channels last.
            train: whether dropout drops; needs the rng `dropout` if there is any.
            head_only: whether only `head` trains: the dropout after `hidden1` then drops nothing.
        """
        check_input(x, self.spatial_axes, self.stem)
        axes = self.spatial_axes
        fields = {
            "kernel_size": (3,) * axes,
            "padding": 1,
            "dtype": self.dtype,
            "kernel_init": he_normal_fan_out,
        }
        features = []
        for stage, convs in enumerate(self.stage_sizes, 1):
            width = self.width * min(2 ** (stage - 1), 8)
            for index in range(1, convs + 1):
                if stage == 1 and index == 1:
                    x = Conv(width, **fields, name="stem_conv")(x)
                else:
                    x = self.conv(width, **fields, name=f"stage{stage}_conv{index}")(x)
                x = nn.relu(x)
            features.append(x)
            if self.stem == "imagenet" or stage > 2:
                x = max_pool(x, (2,) * axes, 2, padding=0)
        if self.num_classes is None:
            return tuple(features)

        # Features first, as torch flattens, so that published weights fit.
        x = bin_averages(x, 7, float32_or_wider(x)).astype(x.dtype)
        for layer, drop in ((1, train and not head_only), (2, train)):
            x = nn.Dense(
                64 * self.width,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=f"hidden{layer}",
            )(x)
            x = Dropout(self.dropout, deterministic=not drop)(nn.relu(x))
        if self.num_classes == 0:
            return x
        return self.dense(self.num_classes, dtype=self.dtype, name="head")(x)


VGG16 = partial(VGG, stage_sizes=(2, 2, 3, 3, 3))
