"""A generator of labelled pictures, and a discriminator that predicts whether they are real and their label.

The base is Odena, Olah, Shlens: Conditional Image Synthesis with Auxiliary Classifier GANs. ICML 2017.
https://arxiv.org/abs/1610.09585. Residual blocks, CBAM and spectral normalisation are those of Fu et al.
2023 (DR-ACGAN), tables 2 and 3: 13,730,793 and 2,456,754 parameters for 17 classes at 256 x 256 x 3.

Deviations: both heads of the discriminator return logits, so that the loss takes no softmax of a softmax;
height and width may be any multiples of 8.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.cbam import CBAM
from dyn.layers.fields import CheckedModule
from dyn.layers.spectral_norm import SpectralNormConv, SpectralNormDense
from dyn.layers.static_conv import Conv
from dyn.models.backbone import ConvFactory, make_batch_norm
from dyn.models.dropout import Dropout
from dyn.ops.sharding import automate_sharding, shard_batch_like

Array = jax.Array

STEPS = 3  # doublings in the generator, halvings in the discriminator

_conv_init = nn.initializers.normal(0.02)
# The default of torch's Linear, which the base keeps.
_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _scale_init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    return 1 + _conv_init(key, shape, dtype)


class ACGAN(CheckedModule):
    """A generator and a discriminator, whose variables are below `generator` and `discriminator`.

    Attributes:
        num_classes: number of labels.
        latent: size of the noise.
        widths: features of the generator's four stages, and in reverse order of the discriminator's four.
        cbam_reduction: ratio of channels to hidden features in the generator's channel gate.
        dropout: share of the feature maps dropped after each convolution of the discriminator.
        conv: makes the convolutions of the generator's residual blocks, as in `ResNet`. Those of the
            discriminator stay static: its Lipschitz bound is the spectral norm of one kernel, which does
            not bound a kernel that depends on the input.
        dtype: dtype of the computation; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.models import ACGAN
        >>> net = ACGAN(num_classes=3, latent=8, widths=(16, 8, 8, 4))
        >>> pictures = jnp.zeros((2, 32, 32, 1))
        >>> variables = jax.jit(net.init)(jax.random.key(0), pictures)
        >>> noise, labels = jax.random.normal(jax.random.key(1), (2, 8)), jnp.array([0, 2])
        >>> generate = lambda v, *args: net.apply(v, *args, (32, 32, 1), method="generate")
        >>> jax.jit(generate)(variables, noise, labels).shape
        (2, 32, 32, 1)
        >>> discriminate = lambda v, x: net.apply(v, x, method="discriminate")
        >>> real, label = jax.jit(discriminate)(variables, pictures)
        >>> real.shape, label.shape
        ((2,), (2, 3))
    """

    num_classes: int
    latent: int = 100
    widths: Sequence[int] = (128, 64, 32, 16)
    cbam_reduction: float = 8.0
    dropout: float = 0.0
    conv: ConvFactory = Conv
    dtype: Any = None

    def setup(self) -> None:
        """Makes the two networks.

        Raises:
            ValueError: unless `widths` has one positive number for each stage.
        """
        if len(self.widths) != STEPS + 1 or min(self.widths) < 1:
            raise ValueError(f"widths={tuple(self.widths)}: give {STEPS + 1} numbers of features.")
        self.generator = Generator(
            self.num_classes, self.widths, self.cbam_reduction, self.conv, self.dtype
        )
        self.discriminator = Discriminator(
            self.num_classes, tuple(reversed(self.widths)), self.dropout, self.dtype
        )

    def __call__(self, inputs: Array, train: bool = False) -> tuple[Array, Array, Array]:
        """Runs both networks once, for `init` and for counting.

        Args:
            inputs: pictures `[B, H, W, C]`.
            train: as in `generate` and `discriminate`.

        Returns:
            Pictures of the inputs' shape from noise of zeros, and the discriminator's logits of the inputs.
        """
        noise = jnp.zeros((inputs.shape[0], self.latent), inputs.dtype)
        noise = shard_batch_like(noise, inputs)
        labels = jnp.zeros(inputs.shape[0], jnp.int32)
        pictures = self.generate(noise, labels, inputs.shape[1:], train)
        return pictures, *self.discriminate(inputs, train)

    def generate(
        self, noise: Array, labels: Array, shape: Sequence[int], train: bool = False
    ) -> Array:
        """Generates pictures `[B, H, W, C]` between -1 and 1; see `Generator`."""
        return self.generator(noise, labels, shape, train)

    def discriminate(self, pictures: Array, train: bool = False) -> tuple[Array, Array]:
        """Returns the logits of being real and of the labels; see `Discriminator`."""
        return self.discriminator(pictures, train)


class Generator(nn.Module):
    """Maps noise and a label to a picture; the attributes are `ACGAN`'s."""

    num_classes: int
    widths: Sequence[int]
    cbam_reduction: float
    conv: ConvFactory
    dtype: Any = None

    @nn.compact
    def __call__(
        self, noise: Array, labels: Array, shape: Sequence[int], train: bool = False
    ) -> Array:
        """Generates pictures.

        Args:
            noise: `[B, latent]`, normally distributed.
            labels: `[B]` integers.
            shape: of a picture, `(H, W, C)`.
            train: whether norms use (and update) batch statistics; needs `mutable=["batch_stats"]`.

        Raises:
            ValueError: if height and width are not multiples of 8.
        """
        height, width, channels = shape
        check_size(height, width)
        types = {"dtype": self.dtype}
        conv = partial(Conv, padding=1, kernel_init=_conv_init, **types)
        norm = partial(make_batch_norm(train, self.dtype), scale_init=_scale_init)
        label = LabelEmbedding(
            self.num_classes,
            noise.shape[-1],
            embedding_init=nn.initializers.normal(1.0),
            **types,
            name="label",
        )(labels)
        start = height >> STEPS, width >> STEPS, self.widths[0]
        x = nn.Dense(math.prod(start), kernel_init=_linear_init, **types, name="linear")(
            label * noise.astype(label.dtype)
        )
        x = x.reshape(-1, *start)
        for stage, features in enumerate(self.widths, 1):
            if stage > 1:
                x = nn.relu(x)
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = conv(features, (3, 3), name=f"stage{stage}_conv")(x)
                x = nn.relu(norm(name=f"stage{stage}_norm")(x))
            x = ResidualBlock(
                partial(self.conv, padding=1, kernel_init=_conv_init, **types),
                norm,
                name=f"stage{stage}_block1",
            )(x)
        x = CBAM(
            reduction=1 / self.cbam_reduction, spatial_norm="none", use_bias=False, name="attention"
        )(x)
        return jnp.tanh(conv(channels, (3, 3), name="picture")(x))


class LabelEmbedding(nn.Embed):
    """`nn.Embed` that also takes a sharded batch of labels on meshes with explicit axes."""

    def __call__(self, inputs: Array) -> Array:
        """Maps labels `[B]` to their rows of the table, `[B, features]`."""

        def look_up(labels: Array, table: Array) -> Array:
            return jnp.take(table, labels, axis=0)

        (table,) = self.promote_dtype(self.embedding, dtype=self.dtype, inexact=False)
        return automate_sharding(look_up, inputs, table)


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), without a final activation."""

    conv: ConvFactory
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[B, H, W, C]` to the same shape."""
        y = self.conv(x.shape[-1], (3, 3), name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(x.shape[-1], (3, 3), name="conv2")(y)
        return x + self.norm(name="norm2")(y)


class Discriminator(nn.Module):
    """Four convolutions and two heads, all of spectral norm one; the attributes are `ACGAN`'s.

    Every call with `batch_stats` mutable takes one step of each layer's power iteration.
    """

    num_classes: int
    widths: Sequence[int]
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Returns the logits of being real, `[B]`, and of the labels, `[B, num_classes]`.

        Args:
            x: pictures `[B, H, W, C]`.
            train: whether dropout drops; needs the rng `dropout` if there is any.

        Raises:
            ValueError: if height and width are not multiples of 8.
        """
        check_size(*x.shape[1:3])
        for n, features in enumerate(self.widths, 1):
            x = SpectralNormConv(
                features,
                (3, 3),
                1 if n == 1 else 2,
                padding=1,
                dtype=self.dtype,
                kernel_init=_conv_init,
                name=f"conv{n}",
            )(x)
            x = nn.leaky_relu(x, 0.2)
            # Whole feature maps: single dropped values could be inferred from their neighbours.
            x = Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        head = partial(SpectralNormDense, dtype=self.dtype, kernel_init=_linear_init)
        return head(1, name="real")(x)[..., 0], head(self.num_classes, name="label")(x)


def check_size(height: int, width: int) -> None:
    """Checks that the networks can halve pictures of this size.

    Raises:
        ValueError: if height and width are not positive multiples of 8.
    """
    factor = 1 << STEPS
    if min(height, width) < factor or height % factor or width % factor:
        raise ValueError(
            f"height and width of pictures must be multiples of {factor}; got {height} x {width}."
        )
