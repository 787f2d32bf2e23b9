"""An autoencoder of pictures with a small code, for features of unlabelled recordings.

Rowe, Eichinski, Zhang, Roe: Acoustic auto-encoders for biodiversity assessment. Ecological Informatics 62,
2021. https://doi.org/10.1016/j.ecoinf.2021.101237

Taken from there: four levels, 4x4 convolutions of stride 2 ('implicit'), or 3x3 convolutions with max
pooling of 4x4 windows at stride 2 ('explicit'), batch norm and ReLU between the layers, a code of 384
numbers. Decided here: a padding of 1 everywhere, so that 384 is 8x8 positions of 6 features; the other
widths; a norm before the code's ReLU, as before all others; unpooling takes the mean of duplicates.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.fields import CheckedModule
from dyn.layers.static_conv import Conv
from dyn.models.backbone import ConvFactory, make_batch_norm
from dyn.ops.max_pool import max_pool_with_argmax
from dyn.ops.max_unpool import max_unpool

Array = jax.Array
Switches = tuple[Array, ...]
"""Positions of the maxima of each level's pooling, from the first level to the last; empty for 'implicit'."""

POOLINGS = ("implicit", "explicit")
CODE_ACTIVATIONS = {"relu": nn.relu, "none": lambda x: x}


class Autoencoder(CheckedModule):
    """Encodes pictures and decodes them again.

        code, switches = encode(x),    y = decode(code, switches)

    Each level l halves the picture. 'implicit' strides, and its decoder has transposed convolutions:

        x_l = ReLU(norm(conv4x4(x_{l-1})))

    'explicit' pools, and its decoder unpools and then convolves:

        x_l, s_l = maxpool(ReLU(norm(conv3x3(x_{l-1}))))
        y_{l-1} = ReLU(norm(conv3x3(maxunpool(y_l, s_l))))

    The reconstruction then depends on the switches s_l too, which are not in the code. The decoder's last
    layer has no norm and ends in a sigmoid.

    Attributes:
        widths: features of each level of the encoder; the last is that of the code.
        pooling: 'implicit' or 'explicit'.
        window: size of the pooling windows of 'explicit', at stride 2: 4 with padding 1, the paper's, whose
            windows overlap, so that unpooling has duplicates and leaves holes; or 2, which has neither.
        code_activation: 'relu', the paper's; or 'none', with which the code is signed and no feature dies.
        norm: whether each convolution but the last is followed by a batch norm.
        conv: makes the encoder's convolutions, a callable with `nn.Conv`'s arguments; those of the decoder
            are static.
        dtype: dtype of the computation; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.models import Autoencoder
        >>> net = Autoencoder(widths=(4, 8, 8, 6), pooling="explicit")
        >>> x = jnp.ones((1, 32, 32, 3))
        >>> variables = jax.jit(net.init)(jax.random.key(0), x)
        >>> jax.eval_shape(net.apply, variables, x).shape
        (1, 32, 32, 3)
        >>> code, switches = jax.jit(lambda v, x: net.apply(v, x, method="encode"))(variables, x)
        >>> code.shape, len(switches)
        ((1, 2, 2, 6), 4)
    """

    widths: Sequence[int] = (64, 128, 256, 6)
    pooling: str = "implicit"
    window: int = 4
    code_activation: str = "relu"
    norm: bool = True
    conv: ConvFactory = Conv
    dtype: Any = None

    def setup(self) -> None:
        """Makes encoder and decoder."""
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling={self.pooling!r} is unknown: write 'implicit' or 'explicit'."
            )
        if self.code_activation not in CODE_ACTIVATIONS:
            raise ValueError(
                f"code_activation={self.code_activation!r} is unknown: write 'relu' or 'none'."
            )
        if self.window not in (2, 4):
            raise ValueError(f"window must be 2 or 4; got {self.window}.")
        shared = {
            "pooling": self.pooling,
            "window": self.window,
            "norm": self.norm,
            "dtype": self.dtype,
        }
        activation = CODE_ACTIVATIONS[self.code_activation]
        self.encoder = Encoder(tuple(self.widths), self.conv, activation, **shared)
        self.decoder = Decoder(tuple(self.widths), **shared)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Reconstructs `x`, `[B, *spatial, C]` with values from 0 to 1.

        Args:
            x: pictures or series, channels last; each side is a multiple of 2**levels.
            train: whether norms use (and update) batch statistics; needs `mutable=["batch_stats"]`.

        Raises:
            ValueError: if a side is not such a multiple.
        """
        code, switches = self.encode(x, train)
        return self.decode(code, switches, train, channels=x.shape[-1])

    def encode(self, x: Array, train: bool = False) -> tuple[Array, Switches]:
        """Returns the code `[B, *spatial / 2**levels, widths[-1]]` of `x`, and the switches for `decode`."""
        factor = 2 ** len(self.widths)
        if any(side % factor for side in x.shape[1:-1]):
            raise ValueError(
                f"pictures of {x.shape[1:-1]} cannot be halved {len(self.widths)} times: choose sides "
                f"that are multiples of {factor}."
            )
        return self.encoder(x, train)

    def decode(
        self, code: Array, switches: Switches = (), train: bool = False, channels: int = 3
    ) -> Array:
        """Decodes codes `[B, *code, widths[-1]]` to pictures with `channels` channels, from 0 to 1.

        Raises:
            ValueError: if the number of switches is not that which `encode` returns.
        """
        expected = len(self.widths) if self.pooling == "explicit" else 0
        if len(switches) != expected:
            raise ValueError(
                f"pooling={self.pooling!r} decodes with {expected} switches; got {len(switches)}. Pass "
                "those that encode returned."
            )
        return self.decoder(code, switches, channels, train)


class Encoder(nn.Module):
    """The encoder of an `Autoencoder`, with its fields."""

    widths: Sequence[int]
    conv: ConvFactory
    activation: Callable[[Array], Array]
    pooling: str
    window: int
    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Switches]:
        """Returns the code and the switches."""
        axes = x.ndim - 2
        size, strides = (4, 2) if self.pooling == "implicit" else (3, 1)
        norm = make_batch_norm(train, self.dtype)
        switches = []
        for level, width in enumerate(self.widths, start=1):
            x = self.conv(
                width,
                (size,) * axes,
                strides,
                padding=1,
                use_bias=not self.norm,
                dtype=self.dtype,
                name=f"conv{level}",
            )(x)
            if self.norm:
                x = norm(name=f"norm{level}")(x)
            x = self.activation(x) if level == len(self.widths) else nn.relu(x)
            if self.pooling == "explicit":
                x, maxima = max_pool_with_argmax(x, (self.window,) * axes, 2, self.window // 2 - 1)
                switches.append(maxima)
        return x, tuple(switches)


class Decoder(nn.Module):
    """The decoder of an `Autoencoder`, with its fields."""

    widths: Sequence[int]
    pooling: str
    window: int
    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, switches: Switches, channels: int, train: bool) -> Array:
        """Returns pictures with `channels` channels."""
        axes = x.ndim - 2
        norm = make_batch_norm(train, self.dtype)
        for level in range(len(self.widths), 0, -1):
            # The width of the encoder's input at this level, which the switches of the level below fit.
            width = self.widths[level - 2] if level > 1 else channels
            fields = {"use_bias": level == 1 or not self.norm, "dtype": self.dtype}
            if self.pooling == "explicit":
                x = max_unpool(x, switches[level - 1], [2 * side for side in x.shape[1:-1]])
                x = Conv(width, (3,) * axes, 1, padding=1, **fields, name=f"conv{level}")(x)
            else:
                # For 4 taps at stride 2, 'SAME' is torch's padding of 1.
                conv = partial(nn.ConvTranspose, width, (4,) * axes, (2,) * axes, padding="SAME")
                x = conv(**fields, name=f"conv{level}")(x)
            if level > 1:
                if self.norm:
                    x = norm(name=f"norm{level}")(x)
                x = nn.relu(x)
        return nn.sigmoid(x)
