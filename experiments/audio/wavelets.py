"""Energies of a complex Morlet wavelet transform, averaged over the columns of a picture."""

import functools
import math

import numpy as np
import scipy.fft

# PyWavelets' cmor1.5-1.0: psi(t) = exp(2 pi i C t - t^2 / B) / sqrt(pi B).
BANDWIDTH = 1.5
CENTRE = 1.0

# Where the wavelet has fallen to a millionth, in time (units of the scale) and in frequency.
_REACH = math.sqrt(BANDWIDTH * math.log(1e6))
_SPREAD = math.sqrt(math.log(1e6) / BANDWIDTH) / math.pi


def energies(
    samples: np.ndarray, rate: int, frequencies: tuple[float, ...], columns: int
) -> np.ndarray:
    """The mean energy of the wavelet coefficients of each scale within each column.

    The coefficients are those of `pywt.cwt(samples, rate / frequencies, "cmor1.5-1.0")`. A wavelet hears a
    band of frequencies only: its coefficients come out of an inverse FFT of that band alone, as far apart in
    time as the band is narrow. All of them at the full rate would take more than a second.

    Args:
        samples: float32 `[n]`; zero before and after.
        rate: samples per second.
        frequencies: in Hz, one per scale, C / scale each.
        columns: how many equal parts the time is cut into.

    Returns:
        float32 `[len(frequencies), columns]`.
    """
    length, bands = _bank(len(samples), rate, frequencies, columns)
    spectrum = scipy.fft.fft(samples.astype(np.float32), length)
    energy = np.empty((len(bands), columns), np.float32)
    for row, (begin, weights, size) in enumerate(bands):
        band = np.zeros(size, np.complex64)
        band[: len(weights)] = spectrum[begin : begin + len(weights)] * weights
        # Shifted down in frequency and coarser in time: the modulus is the same.
        coefficients = scipy.fft.ifft(band, overwrite_x=True) * np.float32(size / length)
        power = coefficients.real**2 + coefficients.imag**2
        energy[row] = _averaged(power, length / size, len(samples), columns)
    return energy


@functools.lru_cache(maxsize=4)
def _bank(
    n: int, rate: int, frequencies: tuple[float, ...], columns: int
) -> tuple[int, list[tuple[int, np.ndarray, int]]]:
    """The length of the spectrum; of each scale its first bin, its weights and its inverse's length."""
    longest = CENTRE * rate / min(frequencies)
    # One ends before it reaches the other end of the circle.
    length = scipy.fft.next_fast_len(n + math.ceil(2 * _REACH * longest))
    bands = []
    for frequency in frequencies:
        scale = CENTRE * rate / frequency
        begin = max(math.floor((CENTRE - _SPREAD) / scale * length), 0)
        end = min(math.ceil((CENTRE + _SPREAD) / scale * length), length // 2) + 1
        bins = np.arange(begin, end) / length
        weights = np.exp(-((np.pi * (scale * bins - CENTRE)) ** 2) * BANDWIDTH) * np.sqrt(scale)
        # Energy varies twice as fast as the coefficients, and a column has some of them.
        least = max(2 * len(weights), math.ceil(4 * columns * length / n))
        bands.append((begin, weights.astype(np.float32), scipy.fft.next_fast_len(least)))
    return length, bands


def _averaged(power: np.ndarray, spacing: float, n: int, columns: int) -> np.ndarray:
    """Means over equal parts of the first n samples; each value stands for `spacing` samples around it."""
    total = np.concatenate([[0.0], np.cumsum(power, dtype=np.float64)])
    # The first value's part begins half a spacing before the sound does.
    edges = np.linspace(0, n, columns + 1) / spacing + 0.5
    sums = np.diff(np.interp(edges, np.arange(len(total)), total))
    return (sums / np.diff(edges)).astype(np.float32)
