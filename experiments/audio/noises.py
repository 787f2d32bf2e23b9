"""Makes sounds in which nobody sings: coloured noise, wind, and noise like the background of a recording."""

import numpy as np

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

    The power falls with the square to the third power of frequency above 20 to 200 Hz; gusts change it
    slowly, by 10 dB up or down.

    Returns:
        float64 `[length]`.
    """
    frequencies = np.arange(length // 2 + 1.0) * rate / length
    corner, exponent = rng.uniform(20, 200), rng.uniform(2, 3)
    shape = (1 + (frequencies / corner) ** 2) ** (-exponent / 4)
    shape[0] = 0.0
    knots = max(2, round(3 * length / rate))  # three changes of the level per second
    gusts = np.interp(
        np.linspace(0, 1, length), np.linspace(0, 1, knots), rng.uniform(-10, 10, knots)
    )
    return _shape_noise(length, shape, rng) * 10 ** (gusts / 20)


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
