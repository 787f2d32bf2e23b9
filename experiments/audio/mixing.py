"""Mixes sounds at a ratio of powers in decibels, before there is a spectrogram.

Sounds add as waveforms. Their spectrograms do not: |X + Y|^2 has a term 2 Re(X conj(Y)), which makes the
texture of two sounds at one time and frequency. In a finished spectrogram, a logarithm relative to the
loudest point, there is no power left to mix at a ratio.
"""

import numpy as np


def measure_power(samples: np.ndarray) -> float:
    """Returns the mean square around the mean: an offset of the recorder is no sound."""
    return float(np.var(samples, dtype=np.float64))


def mix_at_ratio(sound: np.ndarray, other: np.ndarray, decibels: float) -> np.ndarray:
    """Returns x + g y, with g such that 10 log10(P(x) / P(g y)) is `decibels`.

    P is the power around the mean, over the whole window.

    Args:
        sound, other: x and y, `[n]` each.
        decibels: the signal-to-noise ratio, if y is noise.

    Returns:
        float64 `[n]`; x alone if either is silent, because no ratio is possible then.

    Example:
        >>> tone, hiss = np.sin(np.arange(8000.0)), np.random.default_rng(0).normal(size=8000)
        >>> mixed = mix_at_ratio(tone, hiss, decibels=6.0)
        >>> round(10 * np.log10(measure_power(tone) / measure_power(mixed - tone)), 6)
        6.0
    """
    sound = np.asarray(sound, np.float64)
    powers = measure_power(sound), measure_power(other)
    if min(powers) == 0:
        return sound
    gain = np.sqrt(powers[0] / powers[1]) * 10 ** (-decibels / 20)
    return sound + gain * other
