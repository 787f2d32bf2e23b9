"""Synthesises bird songs: recordings for machines that have none, and for tests.

A class determines the sweep of a note, the tempo and the range of pitches; tune, tempo, loudness and noise
vary between recordings. The same arguments write the same files, and existing files with the same content are
left alone.
"""

import io
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.io.wavfile
import scipy.signal

from experiments.audio.annotations import Annotation, write_raven_table
from experiments.core.files import replace_file


class Song(NamedTuple):
    """A class of songs.

    Attributes:
        name: name of the class.
        sweep: maps time to pitch within a note, both 0 to 1.
        low, high: frequencies of the pitches 0 and 1 in Hz.
        notes: notes per second.
    """

    name: str
    sweep: Callable[[np.ndarray], np.ndarray]
    low: float
    high: float
    notes: float


SONGS = (
    Song("riser", lambda t: t, 1800.0, 4200.0, 4.0),
    Song("faller", lambda t: 1 - t, 2600.0, 6400.0, 3.0),
    Song("archer", lambda t: np.sin(np.pi * t), 1200.0, 2600.0, 2.5),
    Song("ticker", lambda t: 1 - np.sqrt(t), 4200.0, 6800.0, 9.0),
    Song("warbler", lambda t: 0.5 + 0.5 * np.sin(6 * np.pi * t), 2200.0, 3600.0, 1.6),
    Song("dipper", lambda t: np.abs(2 * t - 1), 3000.0, 5200.0, 2.2),
    Song("whistler", lambda t: np.full_like(t, 0.5), 1500.0, 1800.0, 1.2),
    Song("stepper", lambda t: np.round(3 * t) / 3, 900.0, 2000.0, 3.4),
)
"""All classes, in the order in which they are used; the highest pitch needs 16,000 samples per second."""


def write_songs(
    folder: str | os.PathLike,
    classes: int = 4,
    recordings: int = 16,
    seconds: float = 3.0,
    rate: int = 32000,
    seed: int = 0,
) -> pathlib.Path:
    """Writes recordings of one song each, in one folder per class.

    Args:
        folder: where the class folders go.
        classes: number of classes, up to `len(SONGS)`.
        recordings: number of recordings per class.
        seconds: length of a recording.
        rate: samples per second.
        seed: decides everything that the class does not.

    Returns:
        The folder.
    """
    folder = pathlib.Path(folder)
    for number, song in enumerate(_choose_songs(classes, rate)):
        for index in range(recordings):
            rng = np.random.default_rng([seed, number, index])
            length = seconds * rng.uniform(0.5, 0.9)
            begin = rng.uniform(0, seconds - length)
            sound = _make_noise(rng, round(seconds * rate))
            _mix_in(sound, synthesise_song(song, length, rate, rng), begin, rate)
            _write_wav(folder / song.name / f"{song.name}-{index + 1:03d}.wav", sound, rate)
    return folder


def write_day(
    folder: str | os.PathLike,
    recordings: int = 16,
    seconds: float = 10.0,
    rate: int = 22050,
    seed: int = 0,
) -> pathlib.Path:
    """Writes the soundscape of a day, in which the birds and the loudness of the wind depend on the hour.

    The names contain the time, as a recorder's do: S4A00001_20200101_060000.wav. Arguments as for
    `write_songs`.
    """
    folder = pathlib.Path(folder)
    songs = _choose_songs(len(SONGS), rate)
    for index in range(recordings):
        rng = np.random.default_rng([seed, index])
        minute = round(index * 24 * 60 / recordings)
        sound = _make_noise(rng, round(seconds * rate)) * (
            0.6 + 0.4 * np.sin(np.pi * minute / 1440)
        )
        for number, song in enumerate(songs):
            # Each class sings most at its own hour.
            distance = abs((minute / 60 - 24 * number / len(songs) + 12) % 24 - 12)
            for _ in range(rng.poisson(0.3 * seconds * np.exp(-((distance / 2.5) ** 2)))):
                length = rng.uniform(0.8, 2.0)
                begin = rng.uniform(0, max(seconds - length, 0))
                _mix_in(sound, synthesise_song(song, length, rate, rng), begin, rate)
        clock = f"{minute // 60:02d}{minute % 60:02d}00"
        _write_wav(folder / f"S4A{index + 1:05d}_20200101_{clock}.wav", sound, rate)
    return folder


def write_mixed_songs(
    folder: str | os.PathLike,
    classes: int = 4,
    recordings: int = 16,
    seconds: float = 20.0,
    rate: int = 32000,
    seed: int = 0,
) -> pathlib.Path:
    """Writes recordings in which several birds sing, also at the same time, with a Raven table for each.

    Arguments as for `write_songs`.
    """
    folder = pathlib.Path(folder)
    songs = _choose_songs(classes, rate)
    for index in range(recordings):
        rng = np.random.default_rng([seed, index])
        sound = _make_noise(rng, round(seconds * rate))
        annotations = []
        for song in rng.permutation(len(songs))[: rng.integers(1, len(songs) + 1)]:
            for _ in range(rng.integers(1, 1 + max(round(seconds / 8), 1))):
                length = min(rng.uniform(0.8, 2.0), seconds)
                begin = rng.uniform(0, seconds - length)
                _mix_in(sound, synthesise_song(songs[song], length, rate, rng), begin, rate)
                band = 0.9 * songs[song].low, 1.1 * songs[song].high
                times = round(begin, 3), round(begin + length, 3)
                annotations.append(Annotation("", *times, songs[song].name, True, *band))
        path = folder / f"long-{index + 1:03d}.wav"
        _write_wav(path, sound, rate)
        annotations.sort(key=lambda annotation: annotation.start)
        table = path.with_suffix(".Table.1.selections.txt")
        write_raven_table(table, annotations, recording=path.name)
    return folder


def synthesise_song(song: Song, seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a song of about the given length, float64 `[n]`, between -1 and 1."""
    tune, tempo = rng.uniform(0.92, 1.08), song.notes * rng.uniform(0.9, 1.1)
    sound = np.zeros(round(seconds * rate))
    for note in range(max(round(seconds * tempo), 1)):
        n = round(rate / tempo * rng.uniform(0.6, 0.8))
        pitch = tune * (song.low + (song.high - song.low) * song.sweep(np.linspace(0, 1, n)))
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        tone = np.sin(phase) + 0.15 * np.sin(2 * phase) * (2 * pitch < rate / 2)
        _mix_in(sound, tone * scipy.signal.windows.tukey(n, 0.4), note / tempo, rate)
    return sound * 10 ** rng.uniform(-1.0, -0.3)


def _choose_songs(classes: int, rate: int) -> tuple[Song, ...]:
    if not 1 <= classes <= len(SONGS):
        raise ValueError(f"classes must be between 1 and {len(SONGS)}; got {classes}")
    if rate < 16000:
        raise ValueError(f"rate must be at least 16000; got {rate}")
    return SONGS[:classes]


def _make_noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Returns wind and hiss of random loudness, mostly at low frequencies."""
    white = rng.standard_normal(n)
    wind = scipy.signal.lfilter([0.05], [1, -0.95], white)
    return (wind + 0.1 * white) * 10 ** rng.uniform(-2.0, -1.3)


def _mix_in(sound: np.ndarray, part: np.ndarray, seconds: float, rate: int) -> None:
    """Mixes one sound into another and cuts it off at the end."""
    begin = round(seconds * rate)
    part = part[: max(len(sound) - begin, 0)]
    sound[begin : begin + len(part)] += part


def _write_wav(path: pathlib.Path, sound: np.ndarray, rate: int) -> None:
    samples = np.rint(np.clip(sound, -1, 1) * 32767).astype(np.int16)
    encoded = io.BytesIO()
    scipy.io.wavfile.write(encoded, rate, samples)
    # A new modification time would invalidate everything that was prepared from the file.
    if path.is_file() and path.read_bytes() == encoded.getvalue():
        return
    with replace_file(path) as temporary:
        temporary.write_bytes(encoded.getvalue())
