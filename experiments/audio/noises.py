"""Makes sounds in which nobody sings: coloured noise, wind, drops, noise like a recording's background."""

import numpy as np
import scipy.signal

_FRAME = 1024  # samples of a frame of a background
_QUIET = 10  # percentile of a frequency's power over the frames that counts as background


def make_coloured_noise(length: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Returns Gaussian noise whose power falls with frequency as f^-exponent.

    0 is white noise, 1 pink, 2 brown.

    Returns:
        float64 `[length]`, with mean 0.
    """
    frequencies = np.arange(length // 2 + 1.0)
    frequencies[0] = np.inf if exponent > 0 else 1.0
    shape = frequencies ** (-exponent / 2)
    shape[0] = 0.0
    return _shape_noise(length, shape, rng)


def make_wind(length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Returns noise like wind in a microphone: low frequencies, whose level rises and falls in gusts.

    The power falls with the second to fourth power of frequency above 20 to 300 Hz, down to a hiss; gusts
    change it by 10 dB up or down, one to twenty times a second.

    Returns:
        float64 `[length]`.
    """
    frequencies = np.arange(length // 2 + 1.0) * rate / length
    corner, exponent = np.exp(rng.uniform(*np.log([20, 300]))), rng.uniform(2, 4)
    shape = (1 + (frequencies / corner) ** 2) ** (-exponent / 4) + 10 ** (
        rng.uniform(-80, -40) / 20
    )
    shape[0] = 0.0
    knots = max(2, round(np.exp(rng.uniform(0, np.log(20))) * length / rate))
    gusts = np.interp(
        np.linspace(0, 1, length), np.linspace(0, 1, knots), rng.uniform(-10, 10, knots)
    )
    return _shape_noise(length, shape, rng) * 10 ** (gusts / 20)


def make_drops(length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Returns clicks at random times over a hiss, like rain on a recorder or a crackling fire.

    There are 2 to 200 clicks a second, each of a random level, that die away within 0.5 to 5 ms, of noise
    whose power falls with frequency; see `make_coloured_noise`.

    Returns:
        float64 `[length]`.
    """
    clicks = np.zeros(length)
    number = max(1, round(np.exp(rng.uniform(*np.log([2, 200]))) * length / rate))
    clicks[rng.integers(length, size=number)] = 10 ** (rng.uniform(-30, 0, number) / 20)
    decay = rate * np.exp(rng.uniform(*np.log([5e-4, 5e-3])))
    loudness = scipy.signal.lfilter([1.0], [1.0, -np.exp(-1 / decay)], clicks)
    hiss = 10 ** (rng.uniform(-60, -20) / 20)
    exponent = rng.uniform(0, 2)
    return make_coloured_noise(length, exponent, rng) * (loudness + hiss)


def imitate_background(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns noise with the spectrum of the quietest moments of a recording.

    Of each frequency the tenth percentile of the power over frames of 1024 samples counts; what is louder
    only at times, such as a song, is not in it.

    Args:
        samples: `[n]`.
        rng: draws the phases and the levels.

    Returns:
        float64 `[n]`; zeros if the recording has no two frames.
    """
    length = len(samples)
    starts = np.arange(0, length - _FRAME + 1, _FRAME // 2)
    frames = np.asarray(samples, np.float64)[starts[:, None] + np.arange(_FRAME)]
    frames = frames[frames.any(axis=1)]  # without the padding
    if len(frames) < 2:
        return np.zeros(length)
    power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME))) ** 2
    quiet = np.sqrt(np.percentile(power, _QUIET, axis=0))
    shape = np.interp(np.linspace(0, 1, length // 2 + 1), np.linspace(0, 1, len(quiet)), quiet)
    shape[0] = 0.0
    return _shape_noise(length, shape, rng)


def _shape_noise(length: int, shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns Gaussian noise with the amplitudes `shape` at its frequencies, `[length // 2 + 1]`."""
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * shape, length)
