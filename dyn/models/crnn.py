"""Convolutional recurrent network (CRNN) for sound event detection: a logit for each class and moment.

Nam, Kim, Ko, Park: Frequency Dynamic Convolution: Frequency-Adaptive Pattern Recognition for Sound Event
Detection. Interspeech 2022. https://arxiv.org/abs/2203.15296 (the network around the layer is DCASE's
baseline for sound events in domestic environments)

Deviations from the authors' code: convolutions have no bias, which the norm after them would take away; the
gates of a GRU have one bias, where torch's have two that are added; no labels of whole clips are predicted;
what is left of the frequencies after the last pooling is averaged.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn.layers.fields import CheckedModule
from dyn.layers.frequency_conv import FrequencyDynamicConv
from dyn.layers.static_conv import Conv
from dyn.models.backbone import ConvFactory, make_batch_norm
from dyn.models.dropout import Dropout

Array = jax.Array


class CRNN(CheckedModule):
    """Convolutions with context gating, two bidirectional GRUs, and a linear classifier of each frame.

        z = norm(conv_l(x_{l-1})),    x_l = avgpool(dropout(z * sigmoid(V_l z + v_l)))
        h = GRU(GRU(mean over frequency of x_n)),    logits[t] = W h[t] + w

    Every pooling halves the frequencies, and the first `time_pools` of them the moments as well: a frame is
    `2 ** time_pools` columns of the spectrogram. The first convolution is static.

    Attributes:
        num_classes: number of logits of a frame; 0 for the inputs of the classifier.
        conv: makes the convolutions after the first: any callable with `nn.Conv`'s arguments.
        features: features of each convolution.
        recurrent: size of the state of a GRU in each direction.
        recurrent_layers: number of GRUs in each direction.
        time_pools: number of the first poolings that halve time, too.
        dropout: share of what each convolution returns, and of the classifier's inputs, that is dropped in
            training.
        dtype: dtype of the computation; None for the inputs'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.models import CRNN
        >>> net = CRNN(num_classes=10)
        >>> x = jax.ShapeDtypeStruct((2, 128, 626, 1), jnp.float32)  # 10 s at 16 kHz, a hop of 256
        >>> logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
        >>> logits.shape
        (2, 156, 10)
    """

    num_classes: int
    conv: ConvFactory = partial(FrequencyDynamicConv, num_kernels=4, attention_norm="batch")
    features: Sequence[int] = (32, 64, 128, 256, 256, 256, 256)
    recurrent: int = 256
    recurrent_layers: int = 2
    time_pools: int = 2
    dropout: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns the logits `[B, T // 2 ** time_pools, num_classes]` of spectrograms `[B, F, T, C]`.

        Args:
            x: spectrograms of F frequencies and T moments.
            train: whether norms use (and update) batch statistics, and dropout drops. Needs
                `mutable=["batch_stats"]` and, if there is any dropout, the rng `dropout`.

        Raises:
            ValueError: if x is not a batch of spectrograms, or they have too few moments for the poolings.
        """
        if x.ndim != 4:
            raise ValueError(f"the network takes spectrograms [B, F, T, C]; got shape {x.shape}.")
        if x.shape[2] < 2**self.time_pools:
            raise ValueError(
                f"spectrograms of {x.shape[2]} moments are too short for {self.time_pools} poolings of two: "
                "choose fewer time_pools."
            )
        norm = make_batch_norm(train, self.dtype, epsilon=1e-3)
        drop = partial(Dropout, self.dropout, deterministic=not train)
        for number, features in enumerate(self.features, 1):
            conv = Conv if number == 1 else self.conv
            fields = {"padding": "SAME", "use_bias": False, "dtype": self.dtype}
            x = conv(features, (3, 3), **fields, name=f"conv{number}")(x)
            x = norm(name=f"norm{number}")(x)
            gate = nn.Dense(features, dtype=self.dtype, name=f"gate{number}")(x)
            x = drop()(x * nn.sigmoid(gate))
            # Few frequencies may be used up before the last convolution.
            window = (min(2, x.shape[1]), 2 if number <= self.time_pools else 1)
            x = average_blocks(x, window)
        x = jnp.mean(x, axis=1)
        for number in range(1, self.recurrent_layers + 1):
            there, back = (
                nn.RNN(nn.GRUCell(self.recurrent, dtype=self.dtype, name=f"{name}{number}"))
                for name in ("forward", "backward")
            )
            states: Any = nn.Bidirectional(there, back, name=f"gru{number}")(x)
            x = states
        x = drop()(x)
        if self.num_classes == 0:
            return x
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


def average_blocks(x: Array, size: tuple[int, int]) -> Array:
    """Averages blocks of `[B, H, W, C]` that follow each other; rows and columns that are left over go."""
    (batch, *sides, features), (tall, wide) = x.shape, size
    rows, columns = sides[0] // tall, sides[1] // wide
    blocks = x[:, : rows * tall, : columns * wide]
    return jnp.mean(blocks.reshape(batch, rows, tall, columns, wide, features), axis=(2, 4))
