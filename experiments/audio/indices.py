"""Untrained features of sound: acoustic indices and cepstra."""

import contextlib
import importlib.metadata
import warnings
from collections.abc import Iterator

import numpy as np

from experiments.audio.require import require_library

N_FFT = 512  # Gives 256 frequency bins; frames overlap by half.
PER_BIN = {
    "ENRf": "mean power of the bin over time, dB",
    "BGNf": "median power of the bin over time, smoothed over 5 bins, dB",
    "SNRf": "ENRf - BGNf, dB (the package's own is 0 everywhere)",
    "ACI": "sum of the changes of the amplitude from frame to frame, divided by the sum of the amplitudes",
    "Ht": "entropy of the bin's power over time, 0 to 1",
    "ACTspFract": "share of frames more than 6 dB above the median of the bin",
    "ACTspMean": "mean level in dB of those frames; 0 without any",
    "ROU": "roughness: mean square of the second difference of the amplitude over time",
}
"""The indices of each frequency bin: 8 times 256 numbers, as in Rowe et al. (2021)."""

_BANDS = ((0, 1000), (1000, 10_000))  # Hz: sounds of people, sounds of animals.


def compute_spectrum(samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the power spectral density `[256, frames]`, times and frequencies of a window."""
    power, times, frequencies, _ = require_library("maad.sound").spectrogram(
        samples.astype(np.float64), rate, nperseg=N_FFT, noverlap=N_FFT // 2, mode="psd"
    )
    return power, times, frequencies


def compute_spectral_indices(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns the indices of `PER_BIN`, float32 `[2048]`, of a window that is not silent."""
    features, sound = require_library("maad.features"), require_library("maad.sound")
    power, _, _ = compute_spectrum(samples, rate)
    with _silence_warnings():
        amplitude = np.sqrt(power)
        energy = 10 * np.log10(power.mean(axis=1))
        *_, background, _ = sound.spectral_snr(power)
        _, complexity, _ = features.acoustic_complexity_index(amplitude)
        _, entropy = features.frequency_entropy(power, compatibility="QUT")
        loud = 10 * np.log10(sound.median_equalizer(power) + 1e-20)
        share, _, _ = features.spectral_activity(loud, dB_threshold=6)
        over = np.where(loud > 6, loud, 0.0)
        level = over.sum(axis=1) / np.maximum((loud > 6).sum(axis=1), 1)
        rough = features.roughness(amplitude, norm=None, axis=1)
    above = energy - background
    indices = (energy, background, above, complexity, entropy, share, level, rough)
    return np.concatenate(indices).astype(np.float32)


def compute_alpha_indices(samples: np.ndarray, rate: int) -> dict[str, float]:
    """Returns scikit-maad's alpha indices of a window by name, 16 of its waveform and 44 of its spectrum.

    The window is not silent. NaN means that an index is undefined.
    """
    features = require_library("maad.features")
    power, times, frequencies = compute_spectrum(samples, rate)
    low, middle = _BANDS
    high = (min(10_000, 0.9 * rate / 2), rate / 2)
    with _silence_warnings():
        temporal = features.all_temporal_alpha_indices(samples.astype(np.float64), rate)
        spectral, _ = features.all_spectral_alpha_indices(
            power, times, frequencies, flim_low=low, flim_mid=middle, flim_hi=high
        )
    values = {**temporal.iloc[0].to_dict(), **spectral.iloc[0].to_dict()}
    return {name: float(value) for name, value in values.items()}


def define_indices(names: list[str], rate: int) -> list[tuple[str, str, str]]:
    """Returns rows of a table that defines the indices: (index, package, settings).

    Packages compute indices of the same name differently, so that the numbers are meaningless without this.
    """
    maad = f"scikit-maad {importlib.metadata.version('scikit-maad')}"
    settings = (
        f"{rate} Hz, Hann frames of {N_FFT} with {N_FFT // 2} overlap, power spectral density"
    )
    bands = f"low {_BANDS[0]}, middle {_BANDS[1]} Hz, high from {min(10_000, 0.45 * rate):g} Hz"
    functions = f"{maad}, features.all_temporal_alpha_indices and .all_spectral_alpha_indices"
    alpha_settings = f"{settings}; {bands}; the other settings are the package's defaults"
    rows = [
        (f"{name} per bin", f"{maad}, {definition}", settings)
        for name, definition in PER_BIN.items()
    ]
    return rows + [(name, functions, alpha_settings) for name in names]


def compute_cepstra(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns 13 mel-frequency cepstral coefficients of each frame of 25 ms, every 10 ms, from 26 mel bands.

    The result is float32 `[13 * frames]`, so time varies fastest. A second has 99 frames; the last one is
    padded with zeros.
    """
    frame, step = round(0.025 * rate), round(0.01 * rate)
    frames = 1 + -(-max(len(samples) - frame, 0) // step)
    padded = np.pad(samples, (0, max((frames - 1) * step + frame - len(samples), 0)))
    coefficients = require_library("librosa.feature").mfcc(
        y=padded, sr=rate, n_mfcc=13, n_mels=26, n_fft=frame, hop_length=step, center=False
    )
    return coefficients.ravel().astype(np.float32)


@contextlib.contextmanager
def _silence_warnings() -> Iterator[None]:
    """Suppresses warnings of undefined values, which become NaN in the table."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
