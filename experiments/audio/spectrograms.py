"""Windows of sound as pictures: frequency upwards, time to the right, loudness as 256 levels."""

import functools
import warnings
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.spatial
from PIL import Image

from experiments.audio import wavelets
from experiments.audio.require import require_library
from experiments.core.errors import UserError

PICTURES = ("mel", "linear", "wavelet")
COLOURS = ("grey", "rgb", "magma")

_OCTAVES = 7  # The wavelets' where no lowest frequency is given: 125 Hz for 32 kHz.


class _Settings(NamedTuple):
    """What decides a picture, as something that a cache can take."""

    picture: str
    sample_rate: int
    seconds: float
    n_fft: int
    win: int
    step: int
    bands: int
    low: float
    high: float
    decibels: float
    drop_dc: bool
    height: int
    width: int


SETTINGS = _Settings._fields
"""What of `config.audio` decides a picture."""


def compute_spectrogram(samples: np.ndarray, audio) -> np.ndarray:
    """The spectrogram of a window.

    Each point is `255 (1 + dB / decibels)`, dB = 10 log10(power / greatest power), not below 0.

    Args:
        samples: float32 `[seconds * sample_rate]`.
        audio: the part of the configuration about sound: `picture` ('mel', 'linear' or 'wavelet'),
            `sample_rate`, `seconds`, `n_fft`, `win` (0: n_fft), `step`, `bands` (of mel, or wavelet scales),
            `low` and `high` in Hz (`high` 0: half the rate; `low` 0 with wavelets: seven octaves below
            `high`), `decibels`, `drop_dc` (without the row of 0 Hz), `height` and `width` (0: as it comes).

    Returns:
        uint8 `[H, W]`; row 0 is the highest frequency. Silence is 0 everywhere.

    Raises:
        UserError: if a setting makes no sense, or a library is not installed.
    """
    settings = _settings(audio)
    height, width = _shape(settings)
    peak = np.abs(samples).max(initial=0.0)
    if peak == 0 or (samples == samples[0]).all():
        return np.zeros((height, width), np.uint8)
    # Only what is loud beside the loudest counts: no square overflows or vanishes.
    power = _power(samples / peak, settings)
    loudest = power.max()
    if loudest <= 0:
        return np.zeros((height, width), np.uint8)
    floor = np.float32(10 ** (-settings.decibels / 10))
    loudness = np.log10(np.maximum(power / loudest, floor)) * (10 / settings.decibels)
    levels = (255 * (1 + loudness)).astype(np.float32)
    return np.clip(np.rint(_resized(levels, height, width)), 0, 255).astype(np.uint8)


def compute_shape(audio) -> tuple[int, int]:
    """Height and width of the pictures.

    Raises:
        UserError: if a setting makes no sense.
    """
    return _shape(_settings(audio))


def compute_frequencies(audio) -> np.ndarray:
    """The frequency in Hz of each row of a picture, float64 `[H]`, falling."""
    settings = _settings(audio)
    rows = _rows(settings)
    height, _ = _shape(settings)
    places = (np.arange(height) + 0.5) * len(rows) / height - 0.5
    return np.interp(places, np.arange(len(rows)), rows)


def check_settings(audio) -> None:
    """Returns if the settings of the pictures make sense.

    Raises:
        UserError: naming the one that does not.
    """
    settings = _settings(audio)
    _rows(settings)
    if settings.picture == "mel":
        _mel(settings)


def apply_colours(levels: np.ndarray, colour: str) -> np.ndarray:
    """Gives levels their colours.

    Args:
        levels: uint8 `[..., H, W]`.
        colour: 'grey' for one channel, 'rgb' for the same three times, 'magma' for matplotlib's colours.

    Returns:
        uint8 `[..., H, W, C]`.
    """
    match colour:
        case "grey":
            return levels[..., None]
        case "rgb":
            return np.repeat(levels[..., None], 3, axis=-1)
        case "magma":
            return _magma()[levels]
    raise UserError(f"--config.audio.colour={colour}: choose one of {', '.join(COLOURS)}.")


def remove_colours(picture: np.ndarray, colour: str) -> np.ndarray:
    """The levels that have these colours, or of colours that no level has (a network drew them) the nearest.

    Args:
        picture: uint8 `[..., H, W, C]`.
        colour: as in `apply_colours`.

    Returns:
        uint8 `[..., H, W]`.
    """
    match colour:
        case "grey":
            return picture[..., 0]
        case "rgb":
            return np.rint(picture.mean(axis=-1)).astype(np.uint8)
        case "magma":
            return _nearest_magma().query(picture)[1].astype(np.uint8)
    raise UserError(f"--config.audio.colour={colour}: choose one of {', '.join(COLOURS)}.")


@functools.cache
def _magma() -> np.ndarray:
    import matplotlib

    return matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]


@functools.cache
def _nearest_magma() -> scipy.spatial.cKDTree:
    return scipy.spatial.cKDTree(_magma())


def _settings(audio) -> _Settings:
    settings = _Settings(*(getattr(audio, name) for name in _Settings._fields))
    _check(settings)
    high = settings.high or settings.sample_rate / 2
    low = settings.low
    if settings.picture == "wavelet":
        low = low or high / 2**_OCTAVES
    return settings._replace(win=settings.win or settings.n_fft, low=low, high=high)


@functools.lru_cache(maxsize=16)
def _check(settings: _Settings) -> None:
    """Raises UserError for what cannot be meant."""

    def wrong(name: str, what: str):
        raise UserError(f"--config.audio.{name}={getattr(settings, name)}: {what}")

    if settings.picture not in PICTURES:
        wrong("picture", f"choose one of {', '.join(PICTURES)}.")
    for name in ("sample_rate", "step", "bands"):
        if getattr(settings, name) < 1:
            wrong(name, "choose 1 or more.")
    if settings.n_fft < 2:
        wrong("n_fft", "choose 2 or more.")
    if not 0 <= settings.win <= settings.n_fft:
        wrong("win", f"choose up to --config.audio.n_fft={settings.n_fft}, or 0 for as many.")
    for name in ("height", "width"):
        if getattr(settings, name) < 0:
            wrong(name, "choose the number of pixels, or 0 to leave it as it comes.")
    if not settings.decibels > 0:
        wrong("decibels", "choose more than 0.")
    if not settings.seconds * settings.sample_rate >= 1:
        wrong("seconds", "a window needs at least one sample.")
    half = settings.sample_rate / 2
    if not 0 <= settings.high <= half:
        wrong(
            "high",
            f"at {settings.sample_rate} samples a second there is nothing above {half:g} Hz.",
        )
    if not 0 <= settings.low < (settings.high or half):
        wrong("low", f"choose less than the highest frequency, {settings.high or half:g} Hz.")


def _shape(settings: _Settings) -> tuple[int, int]:
    height = settings.height or len(_rows(settings))
    return height, settings.width or _columns(settings)


def _columns(settings: _Settings) -> int:
    return 1 + round(settings.seconds * settings.sample_rate) // settings.step


@functools.lru_cache(maxsize=16)
def _rows(settings: _Settings) -> np.ndarray:
    """Hz of the rows before they are resized, falling."""
    match settings.picture:
        case "mel":
            edges = require_library("librosa.core.convert").mel_frequencies(
                settings.bands + 2, fmin=settings.low, fmax=settings.high
            )
            return edges[-2:0:-1]
        case "linear":
            return _bins(settings)[_kept(settings)][::-1]
    return np.geomspace(settings.high, settings.low, settings.bands)


def _bins(settings: _Settings) -> np.ndarray:
    return np.fft.rfftfreq(settings.n_fft, 1 / settings.sample_rate)


@functools.lru_cache(maxsize=16)
def _kept(settings: _Settings) -> np.ndarray:
    """Which rows of the spectrum a linear picture has."""
    bins = _bins(settings)
    kept = np.flatnonzero((bins >= settings.low) & (bins <= settings.high))
    if settings.drop_dc:
        kept = kept[kept > 0]
    if not len(kept):
        raise UserError(
            f"--config.audio.low={settings.low:g}: no frequency of the spectrum lies between it and "
            f"{settings.high:g} Hz; choose a larger --config.audio.n_fft."
        )
    return kept


def _power(samples: np.ndarray, settings: _Settings) -> np.ndarray:
    """float32 `[rows, columns]`."""
    if settings.picture == "wavelet":
        columns = settings.width or _columns(settings)
        rows = tuple(_rows(settings).tolist())
        return wavelets.compute_energies(samples, settings.sample_rate, rows, columns)
    spectrum = require_library("librosa").stft(
        samples, n_fft=settings.n_fft, win_length=settings.win, hop_length=settings.step
    )
    power = spectrum.real**2 + spectrum.imag**2
    if settings.picture == "mel":
        return (_mel(settings) @ power)[::-1]
    return power[_kept(settings)][::-1]


@functools.lru_cache(maxsize=16)
def _mel(settings: _Settings) -> scipy.sparse.csr_array:
    """float32 `[bands, bins]`, bands rising."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of empty filters: said below, as an error.
        filters = require_library("librosa.filters").mel(
            sr=settings.sample_rate,
            n_fft=settings.n_fft,
            n_mels=settings.bands,
            fmin=settings.low,
            fmax=settings.high,
        )
    if empty := int((filters.max(axis=1) == 0).sum()):
        raise UserError(
            f"--config.audio.bands={settings.bands}: {empty} of the mel bands lie between the frequencies of "
            f"a spectrum of --config.audio.n_fft={settings.n_fft}; choose fewer bands or a larger n_fft."
        )
    # A band has few frequencies, and threads of a dense product would stand in the way of other threads.
    return scipy.sparse.csr_array(filters)


def _resized(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    if levels.shape == (height, width):
        return levels
    image = Image.fromarray(np.ascontiguousarray(levels))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
