"""Energies of a complex Morlet wavelet transform, averaged over the columns of a picture."""

import numpy as np

from experiments.audio.require import require_library

WAVELET = "cmor1.5-1.0"  # exp(2 pi i t - t^2 / 1.5) / sqrt(1.5 pi)
_AT_ONCE = 16  # scales: the coefficients of all would be some hundred megabytes


def compute_energies(
    samples: np.ndarray, rate: int, frequencies: tuple[float, ...], columns: int
) -> np.ndarray:
    """The mean energy of the wavelet coefficients of each scale within each column.

    The coefficients are PyWavelets'. They take 0.3 s for 64 frequencies and 2 s at 32 kHz, and are kept.

    Args:
        samples: float32 `[n]`; zero before and after.
        rate: samples per second.
        frequencies: in Hz, one per scale.
        columns: how many equal parts the time is cut into.

    Returns:
        float32 `[len(frequencies), columns]`.
    """
    pywt = require_library("pywt")
    scales = pywt.frequency2scale(WAVELET, np.asarray(frequencies) / rate)
    # A part may begin and end between two samples.
    edges = np.linspace(0, len(samples), columns + 1)
    rows = []
    for some in np.array_split(scales, -(-len(scales) // _AT_ONCE)):
        coefficients, _ = pywt.cwt(samples.astype(np.float32), some, WAVELET, method="fft")
        power = coefficients.real**2 + coefficients.imag**2
        total = np.pad(np.cumsum(power, axis=1, dtype=np.float64), [(0, 0), (1, 0)])
        rows += [np.interp(edges, np.arange(total.shape[1]), row) for row in total]
    return (np.diff(rows, axis=1) / np.diff(edges)).astype(np.float32)
