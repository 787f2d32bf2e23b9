"""An autoencoder of pictures whose code is small: features of sounds that nobody has labelled.

Rowe, Eichinski, Zhang, Roe: Acoustic auto-encoders for biodiversity assessment. Ecological Informatics 62,
2021. https://doi.org/10.1016/j.ecoinf.2021.101237

Taken from there: four levels, 4x4 convolutions of stride 2 ('implicit'), or 3x3 convolutions with max
pooling of 4x4 windows at stride 2 ('explicit'), batch norm and ReLU between the layers, a code of 384
numbers. Decided here: a padding of 1 everywhere, with which 384 is 8x8 places of 6 features;
the other widths; a norm in front of the code's ReLU, as in front of all others; unpooling takes the
mean of duplicates.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn.layers.static_conv import Conv as StaticConv
from dyn.ops.max_pool import max_pool_with_argmax
from dyn.ops.max_unpool import max_unpool

Array = jax.Array
Switches = tuple[Array, ...]
"""Where the inputs of each pooling had their largest values, the first level's first; empty of 'implicit'."""

POOLINGS = ("implicit", "explicit")
CODE_ACTIVATIONS = {"relu": nn.relu, "none": lambda x: x}


class Autoencoder(nn.Module):
    """Pictures to a code and back.

        code, switches = encode(x),    y = decode(code, switches)

    Each of the levels l halves the picture. 'implicit' strides, and its decoder has transposed convolutions:

        x_l = ReLU(norm(conv4x4(x_{l-1})))

    'explicit' pools, and its decoder unpools and then convolves:

        x_l, s_l = maxpool(ReLU(norm(conv3x3(x_{l-1}))))
        y_{l-1} = ReLU(norm(conv3x3(maxunpool(y_l, s_l))))

    What comes out then depends on the switches s_l too, which are not in the code. The decoder's last
    layer has no norm and ends in a sigmoid.

    Attributes:
        widths: features of each level of the encoder; the last is that of the code.
        pooling: 'implicit' or 'explicit'.
        window: of 'explicit' pooling at stride 2: 4 with padding 1, the paper's, whose windows overlap, so
            that unpooling has duplicates and leaves holes; or 2, which has neither.
        code_activation: 'relu', the paper's; 'none' leaves the code signed, and none of its features dead.
        norm: whether a batch norm stands between each convolution and its activation, but for the last.
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
    conv: Callable[..., nn.Module] = StaticConv
    dtype: Any = None

    def setup(self) -> None:
        """Makes the two ways."""
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling={self.pooling!r} is unknown: write 'implicit' or 'explicit'."
            )
        if self.code_activation not in CODE_ACTIVATIONS:
            raise ValueError(
                f"code_activation={self.code_activation!r} is unknown: write 'relu' or 'none'."
            )
        if self.window not in (2, 4):
            raise ValueError(f"window={self.window}: windows of 2 or 4 halve a picture.")
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
        """What comes back of `x`, `[B, *spatial, C]` of numbers from 0 to 1; of the same shape.

        Args:
            x: pictures or series, channels last, whose sides halve as often as there are levels.
            train: whether norms use (and update) batch statistics; needs `mutable=["batch_stats"]`.

        Raises:
            ValueError: if a side does not halve so often.
        """
        code, switches = self.encode(x, train)
        return self.decode(code, switches, train, channels=x.shape[-1])

    def encode(self, x: Array, train: bool = False) -> tuple[Array, Switches]:
        """The code of `x`, `[B, *spatial / 2**levels, widths[-1]]`, and what `decode` wants beside it."""
        times = 2 ** len(self.widths)
        if any(side % times for side in x.shape[1:-1]):
            raise ValueError(
                f"pictures of {x.shape[1:-1]} do not halve {len(self.widths)} times: choose sides that "
                f"are multiples of {times}."
            )
        return self.encoder(x, train)

    def decode(
        self, code: Array, switches: Switches = (), train: bool = False, channels: int = 3
    ) -> Array:
        """Pictures of so many channels, 0 to 1, of codes `[B, *code, widths[-1]]`.

        Raises:
            ValueError: if `pooling` is 'explicit' and there are no switches for each level.
        """
        wanted = len(self.widths) if self.pooling == "explicit" else 0
        if len(switches) != wanted:
            raise ValueError(
                f"{len(switches)} switches: pooling={self.pooling!r} decodes with {wanted}, those that "
                "encode gives."
            )
        return self.decoder(code, switches, channels, train)


class Encoder(nn.Module):
    """The way to the code; see `Autoencoder`, whose fields these are."""

    widths: Sequence[int]
    conv: Callable[..., nn.Module]
    activation: Callable[[Array], Array]
    pooling: str
    window: int
    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Switches]:
        """Code and switches."""
        axes, switches = x.ndim - 2, []
        size, strides = ((4,) * axes, 2) if self.pooling == "implicit" else ((3,) * axes, 1)
        last = len(self.widths)
        for level, width in enumerate(self.widths, start=1):
            conv = partial(self.conv, width, size, strides, padding=1, use_bias=not self.norm)
            x = conv(dtype=self.dtype, name=f"conv{level}")(x)
            if self.norm:
                x = _norm(train, self.dtype, f"norm{level}")(x)
            x = self.activation(x) if level == last else nn.relu(x)
            if self.pooling == "explicit":
                x, places = max_pool_with_argmax(x, (self.window,) * axes, 2, self.window // 2 - 1)
                switches.append(places)
        return x, tuple(switches)


class Decoder(nn.Module):
    """The way back; see `Autoencoder`, whose fields these are."""

    widths: Sequence[int]
    pooling: str
    window: int
    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, switches: Switches, channels: int, train: bool) -> Array:
        """Pictures of so many channels."""
        axes = x.ndim - 2
        for level in range(len(self.widths), 0, -1):
            # What the encoder's level began with, so that its switches fit the level below.
            width = self.widths[level - 2] if level > 1 else channels
            plain = {"use_bias": level == 1 or not self.norm, "dtype": self.dtype}
            if self.pooling == "explicit":
                x = max_unpool(x, switches[level - 1], [2 * side for side in x.shape[1:-1]])
                x = StaticConv(width, (3,) * axes, 1, padding=1, **plain, name=f"conv{level}")(x)
            else:
                # Of 4 taps at stride 2, 'SAME' is a padding of 1 as torch counts it.
                conv = partial(nn.ConvTranspose, width, (4,) * axes, (2,) * axes, padding="SAME")
                x = conv(**plain, name=f"conv{level}")(x)
            if level > 1:
                x = _norm(train, self.dtype, f"norm{level}")(x) if self.norm else x
                x = nn.relu(x)
        return nn.sigmoid(x)


def _norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )
