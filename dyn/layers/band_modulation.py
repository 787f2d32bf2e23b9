"""Frequency band modulation: each octave of an input's spectrum is weighted position by position.

Chen, Gu, Li, Yan, Fu: Frequency Dynamic Convolution for Dense Image Prediction. CVPR 2025, section 3.3.
https://arxiv.org/abs/2503.18783

A band-pass is a box in the spectrum, so it is a matrix product along each axis: with the few frequencies
inside the largest box, and back. There is no Fourier transform of the input. Extensions of the authors' code:
1-D and 3-D inputs, of which every axis but the last is treated as the first of a picture.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dyn.layers.attention import ATTENTION_PRECISION, global_average
from dyn.layers.fields import CheckedModule
from dyn.ops.dynamic_conv import dynamic_conv
from dyn.ops.sharding import automate_sharding, mesh_axes

Array = jax.Array

# The authors make their masks on a grid of this size and resize it.
_GRID = 64


class BandModulation(CheckedModule):
    """Weights the frequency bands of an input at each position.

        y = sum_i a_i(x) * (p_(i-1) - p_i) + p_n,    p_0 = x,    p_i = lowpass(x, 0.5 / divisors[i])

    where a_i = 2 sigmoid(conv_i(x)) and conv_i has a 3 x 3 kernel. At the start y is x.

    Attributes:
        divisors: the low-passes keep frequencies below 0.5 / d of the sampling frequency, so that bands are
            octaves.
        groups: number of maps of each band; each weights as many neighbouring channels. More than 64 stand
            for one map per channel.
        activation: 'sigmoid' (2 sigmoid), 'tanh' (1 + tanh) or 'softmax' (over the maps, times their
            number).
        weigh_rest: whether to weight the last low-pass p_n, too, by another map.
        dtype: dtype of the computation, float32 or wider.
        param_dtype: dtype of the parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dyn.layers.band_modulation import BandModulation
        >>> layer, x = BandModulation(), jax.random.normal(jax.random.key(0), (2, 9, 8, 4))
        >>> variables = layer.init(jax.random.key(1), x)
        >>> y = layer.apply(variables, x)
        >>> y.shape, bool(jnp.allclose(y, x, atol=1e-4))
        ((2, 9, 8, 4), True)
    """

    divisors: Sequence[int] = (2, 4, 8)
    groups: int = 1
    activation: str = "sigmoid"
    weigh_rest: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Modulates `[B, *spatial, C]`; sows `band`, the weights of the bands, averaged over positions.

        Raises:
            ValueError: if the groups do not divide the channels, or the activation is unknown.
        """
        x = x.astype(self.dtype)
        channels, space = x.shape[-1], x.ndim - 2
        groups = channels if self.groups > 64 else self.groups
        if groups < 1 or channels % groups:
            raise ValueError(f"groups={groups} of bands must divide the {channels} input features.")
        number = len(self.divisors) + self.weigh_rest
        maps = [
            _Map((*(3,) * space, channels // groups, groups), self.param_dtype, name=f"conv{n}")()
            for n in range(1, number + 1)
        ]
        # The maps of a group are next to each other, so that one grouped convolution makes all.
        kernel, bias = (jnp.stack(parts, -1) for parts in zip(*maps, strict=True))
        kernel = kernel.reshape(1, *kernel.shape[:-2], groups * number).astype(self.dtype)
        logits = dynamic_conv(x, kernel, feature_group_count=groups, precision=ATTENTION_PRECISION)
        bias = bias.reshape(*(1,) * (logits.ndim - 1), groups * number)
        logits = (logits + bias.astype(self.dtype)).reshape(*logits.shape[:-1], groups, number)
        weights = self.activate(logits)
        mean = jnp.mean(global_average(weights, space, self.dtype), axis=1)
        self.sow("intermediates", "weights", {"band": mean})
        return automate_sharding(
            lambda x, weights: modulate_bands(x, weights, self.divisors),
            *(x, weights),
            axes=mesh_axes(x),
        )

    def activate(self, logits: Array) -> Array:
        """Turns logits `[B, *spatial, groups, bands]` into weights."""
        match self.activation:
            case "sigmoid":
                return 2 * nn.sigmoid(logits)
            case "tanh":
                return 1 + jnp.tanh(logits)
            case "softmax":
                return logits.shape[-2] * nn.softmax(logits, axis=-2)
        raise ValueError(
            f"activation={self.activation!r} of bands is unknown: write 'sigmoid', 'tanh' or 'softmax'."
        )


class _Map(nn.Module):
    """The parameters of the convolution that makes the map of a band."""

    shape: tuple[int, ...]
    param_dtype: Any

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        kernel = self.param("kernel", nn.initializers.normal(1e-6), self.shape, self.param_dtype)
        zeros = nn.initializers.zeros_init()
        return kernel, self.param("bias", zeros, self.shape[-1:], self.param_dtype)


def modulate_bands(x: Array, weights: Array, divisors: Sequence[int]) -> Array:
    """Returns `sum_i weights_i * band_i`, the bands from high to low, and the rest below them.

    Args:
        x: `[B, *spatial, C]`.
        weights: `[B, *spatial, G, n]`, for G groups of neighbouring channels; n is the number of divisors,
            or one more to weight the rest.
        divisors: of the low-passes, from high to low frequencies.
    """
    passes = [x, *low_passes(x, divisors)]
    bands = [high - low for high, low in itertools.pairwise(passes)]
    bands.append(passes[-1])
    groups, number = weights.shape[-2:]
    split = (*x.shape[:-1], groups, x.shape[-1] // groups)
    parts = [
        (weights[..., n, None] * bands[n].reshape(split)).reshape(x.shape) for n in range(number)
    ]
    return sum(parts + bands[number:], start=jnp.zeros_like(x))


def low_passes(x: Array, divisors: Sequence[int]) -> list[Array]:
    """Returns `irfftn(m_d * rfftn(x))` over the spatial axes for each divisor d, by matrix products.

    Args:
        x: `[B, *spatial, C]`, float32 or wider.
        divisors: see `find_passed`.
    """
    rank = x.ndim - 2
    if 0 in x.shape[1:-1]:
        return [x] * len(divisors)
    passed = [find_passed(x.shape[1 + n], divisors, half=n == rank - 1) for n in range(rank)]
    kept = [np.sort(list(set().union(*of_axis))) for of_axis in passed]
    # Real and imaginary parts are along an axis after the batch's.
    spectrum = x[:, None]
    for axis in reversed(range(rank)):
        waves = _make_waves(kept[axis], x.shape[1 + axis])
        if axis == rank - 1:
            waves = waves[:1]  # of a real input
        spectrum = _multiply_axis(spectrum, axis, waves)
    results = []
    for of_band in zip(*passed, strict=True):
        y = spectrum
        for axis, frequencies in enumerate(of_band):
            start = int(np.searchsorted(kept[axis], frequencies[0]))
            y = lax.slice_in_dim(y, start, start + len(frequencies), axis=2 + axis)
        for axis, frequencies in enumerate(of_band):
            length = x.shape[1 + axis]
            # Back, by the conjugate waves.
            waves = _make_waves(-frequencies, length).swapaxes(1, 3) / length
            if axis == rank - 1:
                # All but the mean, and the highest of an even number, stand for two; the result is real.
                twice = np.where(frequencies * 2 % length == 0, 1, 2)
                waves = (waves * twice[:, None, None])[:, :, :1]
            y = _multiply_axis(y, axis, waves)
        results.append(y[:, 0])
    return results


def find_passed(length: int, divisors: Sequence[int], half: bool) -> list[np.ndarray]:
    """Returns the frequencies of one axis that each low-pass keeps, as signed integers in order.

    A low-pass keeps a frequency f of the spectrum if max(|f_1|, |f_2|, ...) < 0.5 / d + 1e-8 in float32,
    which excludes the bound for d = 2 and includes it for 4 and 8. The authors compute this on a grid of 64
    and resize the mask to the nearest, so that the frequencies f and -f of a length are not always treated
    alike.

    Args:
        length: n, size of the axis.
        divisors: d of each low-pass.
        half: for the axis of which the spectrum has only the frequencies from 0 to n // 2.
    """
    frequencies = np.arange(length // 2 + 1) if half else np.arange(length)
    on_grid = np.fft.rfftfreq(_GRID) if half else np.fft.fftfreq(_GRID)
    nearest = on_grid[frequencies * len(on_grid) // len(frequencies)].astype(np.float32)
    signed = np.where(frequencies > length // 2, frequencies - length, frequencies)
    bounds = [np.float32(0.5 / divisor) + np.float32(1e-8) for divisor in divisors]
    return [np.sort(signed[np.abs(nearest) < bound]) for bound in bounds]


def _make_waves(frequencies: np.ndarray, length: int) -> np.ndarray:
    """Returns exp(-2 pi i f x / n) as a product of pairs: `[from, x, to, f]`."""
    turns = np.arange(length)[:, None] * frequencies % length
    waves = np.exp(-2j * np.pi / length * turns)
    parts = [[waves.real, waves.imag], [-waves.imag, waves.real]]
    return np.moveaxis(np.array(parts), 1, 2)


def _multiply_axis(x: Array, axis: int, waves: np.ndarray) -> Array:
    """Multiplies the pairs along a spatial axis of `[B, from, *spatial, C]` by `[from, old, to, new]`."""
    y = jnp.tensordot(
        x, jnp.asarray(waves, x.dtype), ((1, 2 + axis), (0, 1)), precision=lax.Precision.HIGHEST
    )
    return jnp.moveaxis(y, (-2, -1), (1, 2 + axis))
