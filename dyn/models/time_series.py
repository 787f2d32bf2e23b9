"""Two small networks for series: one or two convolutions, and fully connected layers.

Source: Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech).

Net1 and Net2 of Bhati and Sherawat, Comprehensive Study Dynamic CNN (Virginia Tech), section 2.3, which
names their layers (a convolution, max pooling, fully connected layers; Net2 has one more convolution) but
not their sizes. Decided here: ReLU and max pooling after each of Net2's convolutions, all sizes, one fully
connected layer unless `hidden` adds another, dropout before the last, the optional norms, and the context
'series'.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.dcd_conv import bin_averages
from dyn.layers.fields import CheckedModule
from dyn.models.backbone import ConvFactory, make_batch_norm
from dyn.models.dropout import Dropout
from dyn.ops.dtypes import float32_or_wider

Array = jax.Array


class SeriesNet(CheckedModule):
    """Convolutions with ReLU and max pooling, and a linear classifier of the flattened features.

        x_l = maxpool(ReLU(conv_l(x_{l-1}))),    logits = V flatten(x_n) + v

    The classifier has weights for each position, so a network fits series of one length.

    By default a dynamic convolution attends to the mean of its input over time, which is zero for a
    z-normalised series: its attention is then the same for every series, and a dynamic Net1 of one channel
    is a static one. `context="series"` shows it the outline of the series instead.

    Attributes:
        num_convs: number of convolutions; 1 in `Net1`, 2 in `Net2`.
        num_classes: number of logits; 0 for the classifier's inputs.
        conv: makes a convolution: `nn.Conv`, `partial(DynamicConv, num_kernels=4)`, or any callable with
            `nn.Conv`'s arguments.
        features: features of each convolution.
        kernel_size: size of each kernel, in samples.
        pool: window and stride of the max pooling, in samples.
        hidden: size of a fully connected layer with ReLU before the classifier; 0 for none.
        norm: whether each convolution is followed by a batch norm instead of having a bias: for layers
            whose outputs start far from a static convolution's, such as `ODConv`.
        dropout: share of the classifier's inputs dropped in training.
        dtype: dtype of the computation; None for the inputs'.
        context: the context of the convolutions' attention: 'input', the default of each layer (and the
            only choice for `nn.Conv`); 'series', the means of `bins` equal parts of the network's input, the
            same for all convolutions.
        bins: number of those parts.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functools import partial
        >>> from dyn.layers import DynamicConv
        >>> from dyn.models import Net2
        >>> net = Net2(num_classes=37, conv=partial(DynamicConv, num_kernels=4), context="series")
        >>> x = jnp.ones((2, 176, 1))
        >>> variables = jax.jit(net.init)(jax.random.key(0), x)
        >>> jax.jit(net.apply)(variables, x).shape
        (2, 37)
    """

    num_convs: int
    num_classes: int
    conv: ConvFactory = nn.Conv
    features: int = 64
    kernel_size: int = 9
    pool: int = 2
    hidden: int = 0
    norm: bool = False
    dropout: float = 0.0
    dtype: Any = None
    context: str = "input"
    bins: int = 16

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns the logits `[B, num_classes]` of `x`, `[B, L, C]`.

        Args:
            x: series of L samples in C channels.
            train: whether norms use (and update) batch statistics, and dropout drops. Needs
                `mutable=["batch_stats"]` if there are norms, here or in the attention, and the rng
                `dropout` if there is any.

        Raises:
            ValueError: if x is not a batch of series, if they are too short for the poolings, or for an
                unknown context.
        """
        if x.ndim != 3:
            raise ValueError(f"the network takes series [B, L, C]; got shape {x.shape}.")
        if x.shape[1] < self.pool**self.num_convs:
            raise ValueError(
                f"series of {x.shape[1]} samples are too short for the {self.num_convs} max poolings of "
                f"{self.pool}: choose a smaller pool."
            )
        extra_inputs = self._compute_context(x)
        for layer in range(1, self.num_convs + 1):
            x = self.conv(
                self.features,
                (self.kernel_size,),
                padding="SAME",
                use_bias=not self.norm,
                dtype=self.dtype,
                name=f"conv{layer}",
            )(x, **extra_inputs)
            if self.norm:
                x = make_batch_norm(train, self.dtype)(name=f"norm{layer}")(x)
            x = nn.max_pool(nn.relu(x), (self.pool,), (self.pool,))

        x = x.reshape(x.shape[0], -1)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x))
        x = Dropout(self.dropout, deterministic=not train)(x)
        if self.num_classes == 0:
            return x
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)

    def _compute_context(self, series: Array) -> dict[str, Array]:
        """Returns the extra inputs of the convolutions."""
        if self.context == "input":
            return {}
        if self.context != "series":
            raise ValueError(f"context={self.context!r} is unknown: write 'input' or 'series'.")
        if not 1 <= self.bins <= series.shape[1]:
            raise ValueError(
                f"bins must be from 1 to {series.shape[1]}, the length of the series; got {self.bins}."
            )
        return {"context": bin_averages(series, self.bins, float32_or_wider(series))}


Net1 = partial(SeriesNet, num_convs=1)
Net2 = partial(SeriesNet, num_convs=2)
