"""Energies of a complex Morlet wavelet transform, averaged over the columns of a picture."""

import numpy as np

from experiments.audio.require import require_library

WAVELET = "cmor1.5-1.0"  # exp(2 pi i t - t^2 / 1.5) / sqrt(1.5 pi)
_SCALES_AT_ONCE = 16  # The coefficients of all scales would take some hundred megabytes.


def compute_energies(
    samples: np.ndarray, rate: int, frequencies: tuple[float, ...], columns: int
) -> np.ndarray:
    """Returns the mean energy of the wavelet coefficients of each scale in each column.

    PyWavelets computes the coefficients. 64 frequencies of 2 s at 32 kHz take 0.3 s.

    Args:
        samples: float32 `[n]`; zero before and after.
        rate: samples per second.
        frequencies: in Hz, one per scale.
        columns: number of equal parts of the time.

    Returns:
        float32 `[len(frequencies), columns]`.
    """
    pywt = require_library("pywt")
    scales = pywt.frequency2scale(WAVELET, np.asarray(frequencies) / rate)
    # A part may begin and end between two samples.
    edges = np.linspace(0, len(samples), columns + 1)
    rows = []
    for chunk in np.array_split(scales, -(-len(scales) // _SCALES_AT_ONCE)):
        coefficients, _ = pywt.cwt(samples.astype(np.float32), chunk, WAVELET, method="fft")
        power = coefficients.real**2 + coefficients.imag**2
        total = np.pad(np.cumsum(power, axis=1, dtype=np.float64), [(0, 0), (1, 0)])
        rows += [np.interp(edges, np.arange(total.shape[1]), row) for row in total]
    return (np.diff(rows, axis=1) / np.diff(edges)).astype(np.float32)
