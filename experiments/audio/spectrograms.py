"""Spectrograms of windows: frequency upwards, time to the right, loudness as 256 levels."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
import scipy.sparse
import scipy.spatial
from ml_collections import ConfigDict
from PIL import Image

from experiments.audio import efficientat, wavelets
from experiments.audio.require import require_library
from experiments.core.errors import UserError

PICTURES = ("mel", "linear", "wavelet")
FRONTENDS = ("dyn", "efficientat")
COLOURS = ("grey", "rgb", "magma")

_OCTAVES = 7  # Range of the wavelets if no lowest frequency is set: down to 125 Hz for 32 kHz.


class _Settings(NamedTuple):
    """The settings that determine a spectrogram, hashable for caches."""

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
    frontend: str


SETTINGS = _Settings._fields
"""Names of the settings in `config.audio` that determine a spectrogram."""


def has_absolute_levels(audio: ConfigDict | _Settings) -> bool:
    """Returns whether white is a fixed level instead of the loudest point of each window."""
    return audio.frontend == "efficientat"


def compute_spectrogram(samples: np.ndarray, audio: ConfigDict) -> np.ndarray:
    """Returns the spectrogram of a window.

    Each point is `max(0, 255 (1 + dB / decibels))` with dB = 10 log10(power / maximum power). With `frontend`
    'efficientat' it is a mel spectrogram as EfficientAT's networks see it, on another scale: see
    `experiments.audio.efficientat`.

    Args:
        samples: float32 `[seconds * sample_rate]`.
        audio: the audio section of the configuration: `picture` ('mel', 'linear' or 'wavelet'),
            `sample_rate`, `seconds`, `n_fft`, `win` (0: n_fft), `step`, `bands` (mel bands or wavelet
            scales), `low` and `high` in Hz (`high` 0: half the rate; `low` 0 with wavelets: seven octaves
            below `high`), `decibels`, `drop_dc` (drops the row of 0 Hz), `height` and `width` (0: natural
            size), `frontend`.

    Returns:
        uint8 `[H, W]`; row 0 is the highest frequency, with 'efficientat' the lowest. Silence is 0
        everywhere.
    """
    settings = _resolve_settings(audio)
    height, width = _compute_shape(settings)
    peak = np.abs(samples).max(initial=0.0)
    if peak == 0 or (samples == samples[0]).all():
        return np.zeros((height, width), np.uint8)
    if has_absolute_levels(settings):
        power = efficientat.compute_power(samples, *_list_band_settings(settings))
        levels = efficientat.scale_to_levels(power, settings.decibels)
        return np.clip(np.rint(_resize(levels, height, width)), 0, 255).astype(np.uint8)
    # Levels are relative to the maximum; dividing keeps squares from overflowing or vanishing.
    power = _compute_power(samples / peak, settings)
    loudest = power.max()
    if loudest <= 0:
        return np.zeros((height, width), np.uint8)
    floor = np.float32(10 ** (-settings.decibels / 10))
    loudness = np.log10(np.maximum(power / loudest, floor)) * (10 / settings.decibels)
    levels = (255 * (1 + loudness)).astype(np.float32)
    return np.clip(np.rint(_resize(levels, height, width)), 0, 255).astype(np.uint8)


def list_settings(audio: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in `config.audio` that determine a spectrogram, those of old runs included."""
    younger = {"frontend": FRONTENDS[0]}
    return {name: audio.get(name, younger.get(name)) for name in SETTINGS}


def compute_shape(audio: ConfigDict) -> tuple[int, int]:
    """Returns the height and width of the spectrograms."""
    return _compute_shape(_resolve_settings(audio))


def compute_frequencies(audio: ConfigDict) -> np.ndarray:
    """Returns the frequency in Hz of each row of a spectrogram, float64 `[H]`.

    They descend, but ascend with the frontend 'efficientat'.
    """
    settings = _resolve_settings(audio)
    rows = _compute_rows(settings)
    height, _ = _compute_shape(settings)
    positions = (np.arange(height) + 0.5) * len(rows) / height - 0.5
    return np.interp(positions, np.arange(len(rows)), rows)


def compute_times(audio: ConfigDict) -> np.ndarray:
    """Returns the middle of each column in seconds after the start of its window, float64 `[W]`."""
    settings = _resolve_settings(audio)
    width = _compute_shape(settings)[1]
    middles = (np.arange(width) + 0.5) / width
    if settings.picture == "wavelet":
        return middles * settings.seconds
    # A column of a transform is centred on a sample, the first one on the window's start.
    return (middles * _count_columns(settings) - 0.5) * settings.step / settings.sample_rate


def check_settings(audio: ConfigDict) -> None:
    """Raises a UserError that names the first invalid setting of the spectrograms."""
    settings = _resolve_settings(audio)
    _compute_rows(settings)
    if settings.picture == "mel" and settings.frontend == "dyn":
        _make_mel_filters(settings)


def apply_colours(levels: np.ndarray, colour: str) -> np.ndarray:
    """Colours levels.

    Args:
        levels: uint8 `[..., H, W]`.
        colour: 'grey' for one channel, 'rgb' for three equal channels, 'magma' for matplotlib's colours.

    Returns:
        uint8 `[..., H, W, C]`.
    """
    match colour:
        case "grey":
            return levels[..., None]
        case "rgb":
            return np.repeat(levels[..., None], 3, axis=-1)
        case "magma":
            return _get_magma()[levels]
    raise UserError(f"--config.audio.colour={colour}: choose one of {', '.join(COLOURS)}.")


def remove_colours(picture: np.ndarray, colour: str) -> np.ndarray:
    """Returns the levels `[..., H, W]` of colours from `apply_colours`.

    Colours that no level has, from a generator, get the nearest level.
    """
    match colour:
        case "grey":
            return picture[..., 0]
        case "rgb":
            return np.rint(picture.mean(axis=-1)).astype(np.uint8)
        case "magma":
            return _make_magma_tree().query(picture)[1].astype(np.uint8)
    raise UserError(f"--config.audio.colour={colour}: choose one of {', '.join(COLOURS)}.")


@functools.cache
def _get_magma() -> np.ndarray:
    import matplotlib

    return matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]


@functools.cache
def _make_magma_tree() -> scipy.spatial.cKDTree:
    return scipy.spatial.cKDTree(_get_magma())


def _resolve_settings(audio: ConfigDict) -> _Settings:
    settings = _Settings(**list_settings(audio))
    _check_settings(settings)
    high = settings.high or settings.sample_rate / 2
    low = settings.low
    if settings.picture == "wavelet":
        low = low or high / 2**_OCTAVES
    return settings._replace(win=settings.win or settings.n_fft, low=low, high=high)


@functools.lru_cache(maxsize=16)
def _check_settings(settings: _Settings) -> None:
    """Raises a UserError for the first invalid setting."""
    refuse = functools.partial(_refuse, settings)
    if settings.picture not in PICTURES:
        refuse("picture", f"choose one of {', '.join(PICTURES)}.")
    if settings.frontend not in FRONTENDS:
        refuse("frontend", f"choose one of {', '.join(FRONTENDS)}.")
    reflected = settings.n_fft / 2 + 2 if settings.frontend == "efficientat" else 0
    if reflected and settings.picture != "mel":
        refuse("picture", "--config.audio.frontend=efficientat draws mel.")
    if settings.seconds * settings.sample_rate < reflected:
        refuse("seconds", "choose more than half of the samples in --config.audio.n_fft.")
    for name in ("sample_rate", "step", "bands"):
        if getattr(settings, name) < 1:
            refuse(name, "choose 1 or more.")
    if settings.n_fft < 2:
        refuse("n_fft", "choose 2 or more.")
    if not 0 <= settings.win <= settings.n_fft:
        refuse("win", f"choose at most --config.audio.n_fft={settings.n_fft}, or 0 for the same.")
    for name in ("height", "width"):
        if getattr(settings, name) < 0:
            refuse(name, "choose the number of pixels, or 0 for the natural size.")
    if not settings.decibels > 0:
        refuse("decibels", "choose more than 0.")
    if not settings.seconds * settings.sample_rate >= 1:
        refuse("seconds", "a window needs at least one sample.")
    _check_band(settings)


def _check_band(settings: _Settings) -> None:
    """Raises a UserError for frequencies that the sample rate does not have."""
    half = settings.sample_rate / 2
    if not 0 <= settings.high <= half:
        _refuse(settings, "high", f"choose at most {half:g} Hz, half of the sample rate.")
    if not 0 <= settings.low < (settings.high or half):
        _refuse(
            settings,
            "low",
            f"choose less than the highest frequency, {settings.high or half:g} Hz.",
        )


def _refuse(settings: _Settings, name: str, remedy: str) -> NoReturn:
    raise UserError(f"--config.audio.{name}={getattr(settings, name)}: {remedy}")


def _compute_shape(settings: _Settings) -> tuple[int, int]:
    height = settings.height or len(_compute_rows(settings))
    return height, settings.width or _count_columns(settings)


def _count_columns(settings: _Settings) -> int:
    # The pre-emphasis of EfficientAT takes a sample.
    lost = settings.frontend == "efficientat"
    return 1 + (round(settings.seconds * settings.sample_rate) - lost) // settings.step


def _list_band_settings(settings: _Settings) -> tuple[float, ...]:
    """Returns the arguments of `efficientat.compute_power` after the samples."""
    return (
        *(settings.sample_rate, settings.n_fft, settings.win, settings.step),
        *(settings.bands, settings.low, settings.high),
    )


@functools.lru_cache(maxsize=16)
def _compute_rows(settings: _Settings) -> np.ndarray:
    """Returns the frequencies in Hz of the rows before resizing, descending."""
    if settings.frontend == "efficientat":
        return efficientat.list_centres(settings.bands, settings.low, settings.high)
    match settings.picture:
        case "mel":
            edges = require_library("librosa.core.convert").mel_frequencies(
                settings.bands + 2, fmin=settings.low, fmax=settings.high
            )
            return edges[-2:0:-1]
        case "linear":
            return _compute_bins(settings)[_select_bins(settings)][::-1]
    return np.geomspace(settings.high, settings.low, settings.bands)


def _compute_bins(settings: _Settings) -> np.ndarray:
    return np.fft.rfftfreq(settings.n_fft, 1 / settings.sample_rate)


@functools.lru_cache(maxsize=16)
def _select_bins(settings: _Settings) -> np.ndarray:
    """Returns the rows of the spectrum that a linear spectrogram keeps."""
    bins = _compute_bins(settings)
    kept = np.flatnonzero((bins >= settings.low) & (bins <= settings.high))
    if settings.drop_dc:
        kept = kept[kept > 0]
    if not len(kept):
        raise UserError(
            f"--config.audio.low={settings.low:g}: no frequency of the spectrum lies between it and "
            f"{settings.high:g} Hz; choose a larger --config.audio.n_fft."
        )
    return kept


def _compute_power(samples: np.ndarray, settings: _Settings) -> np.ndarray:
    """Returns the power of each point, float32 `[rows, columns]`, before resizing."""
    if settings.picture == "wavelet":
        columns = settings.width or _count_columns(settings)
        rows = tuple(_compute_rows(settings).tolist())
        return wavelets.compute_energies(samples, settings.sample_rate, rows, columns)
    spectrum = require_library("librosa").stft(
        samples, n_fft=settings.n_fft, win_length=settings.win, hop_length=settings.step
    )
    power = spectrum.real**2 + spectrum.imag**2
    if settings.picture == "mel":
        return (_make_mel_filters(settings) @ power)[::-1]
    return power[_select_bins(settings)][::-1]


@functools.lru_cache(maxsize=16)
def _make_mel_filters(settings: _Settings) -> scipy.sparse.csr_array:
    """Returns the mel filters, float32 `[bands, bins]`, bands ascending."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Empty filters are an error below.
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
    # Filters are sparse, and the threads of a dense product would compete with our own.
    return scipy.sparse.csr_array(filters)


def _resize(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    if levels.shape == (height, width):
        return levels
    image = Image.fromarray(np.ascontiguousarray(levels))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
