"""The mel spectrograms of EfficientAT, with which its networks for AudioSet were trained.

Schmid, Koutini, Widmer: Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio Models.
IEEE/ACM TASLP 2024. https://arxiv.org/abs/2310.15648. Mel bands are Kaldi's.
"""

import functools

import numpy as np
import scipy.fft
import scipy.signal
import scipy.sparse

PRE_EMPHASIS = 0.97
FLOOR = 1e-5  # added to the power; 50 decibels below 1
CENTRE, SCALE = -4.5, 5.0  # of the logarithms that the networks see
# 10 log10 of the floor.
_LOWEST = -50.0


def compute_features(
    samples: np.ndarray,
    rate: int = 32_000,
    n_fft: int = 1024,
    win: int = 800,
    step: int = 320,
    bands: int = 128,
    low: float = 0.0,
    high: float = 15_000.0,
) -> np.ndarray:
    """Returns what the networks see of a sound, float32 `[bands, 1 + (n - 1) // step]`, bands ascending.

        (log(M |STFT(y)|^2 + 1e-5) + 4.5) / 5,    y[t] = x[t + 1] - 0.97 x[t]

    The window of the transform is a symmetric Hann window in the middle of `n_fft` samples, the ends of the
    sound are reflected, and M are Kaldi's mel filters: triangles on the scale 1127 ln(1 + f / 700).

    Args:
        samples: x, floats `[n]` between -1 and 1, more than `n_fft / 2 + 1` of them.
        rate: samples per second.
        n_fft, win, step: of the transform, in samples.
        bands: number of mel bands.
        low, high: edges of the lowest and the highest one in Hz.

    Example:
        >>> compute_features(np.zeros(32_000, np.float32)).shape
        (128, 100)
        >>> round(float(compute_features(np.zeros(32_000, np.float32)).max()), 4)
        -1.4026
    """
    power = compute_power(samples, rate, n_fft, win, step, bands, low, high)
    return ((np.log(power + np.float32(FLOOR)) - CENTRE) / SCALE).astype(np.float32)


def compute_power(
    samples: np.ndarray,
    rate: int,
    n_fft: int,
    win: int,
    step: int,
    bands: int,
    low: float,
    high: float,
) -> np.ndarray:
    """Returns the power of each mel band and column, float32; see `compute_features`."""
    samples = np.asarray(samples, np.float32)
    emphasised = samples[1:] - np.float32(PRE_EMPHASIS) * samples[:-1]
    padded = np.pad(emphasised, n_fft // 2, mode="reflect")
    columns = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::step]
    spectrum = scipy.fft.rfft(columns * _make_window(n_fft, win))
    power = spectrum.real**2 + spectrum.imag**2
    return _make_filters(rate, n_fft, bands, low, high) @ power.T


def scale_to_levels(power: np.ndarray, decibels: float) -> np.ndarray:
    """Returns levels from 0 to 255, not rounded, of a range of decibels that begins at -50.

    They are `255 (10 log10(power + 1e-5) + 50) / decibels`, whatever else is in the window: the networks know
    loudness.
    """
    loudness = 10 * np.log10(power + np.float32(FLOOR))
    return (255 / decibels * (loudness - _LOWEST)).astype(np.float32)


def find_normalisation(decibels: float) -> tuple[float, float]:
    """Returns mean and standard deviation that turn levels over 255 into what the networks see.

    Example:
        >>> mean, std = find_normalisation(110.0)
        >>> round(mean, 6), round(std, 6)
        (0.27688, 0.197407)
    """
    nepers = decibels * np.log(10) / 10
    lowest = np.log(FLOOR)
    return float((CENTRE - lowest) / nepers), float(SCALE / nepers)


def list_centres(bands: int, low: float, high: float) -> np.ndarray:
    """Returns the middle of each mel band in Hz, ascending, float64 `[bands]`."""
    edges = np.linspace(_to_mel(low), _to_mel(high), bands + 2)
    return 700 * np.expm1(edges[1:-1] / 1127)


def _to_mel(frequency: np.ndarray | float) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(frequency, np.float64) / 700)


@functools.lru_cache(maxsize=16)
def _make_window(n_fft: int, win: int) -> np.ndarray:
    window, before = scipy.signal.windows.hann(win), (n_fft - win) // 2
    return np.pad(window, (before, n_fft - win - before)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _make_filters(
    rate: int, n_fft: int, bands: int, low: float, high: float
) -> scipy.sparse.csr_array:
    """Returns the mel filters, float32 `[bands, n_fft // 2 + 1]`; the highest frequency has no weight."""
    edges = np.linspace(_to_mel(low), _to_mel(high), bands + 2)[:, None]
    mels = _to_mel(np.arange(n_fft // 2) * rate / n_fft)
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    return scipy.sparse.csr_array(np.pad(filters, [(0, 0), (0, 1)]).astype(np.float32))
