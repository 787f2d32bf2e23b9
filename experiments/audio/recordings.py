"""Sound files, read in order and in blocks: a long one needs no more memory than a short one."""

import dataclasses
import os
import pathlib
import stat
from collections.abc import Callable, Iterator

import numpy as np

from experiments.audio import truncation
from experiments.audio.require import require_library
from experiments.core.errors import UserError
from experiments.core.listing import list_files

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".wav")
MOST_FRAMES = 2**40
"""A header that promises this many is damaged: at 48 kHz they would play for 265 days."""
MOST_RATE = 2**24

# An MP3 file's head counts what its decoder may leave out at the ends: up to one MPEG frame.
_MPEG_FRAME = 1152

# A small block, because all of the block in which a FLAC file breaks off is lost.
_FRAMES = 4096


class Unreadable(ValueError):
    """Why a recording cannot be used: a few words without its path and without a full stop."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """What the head of a sound file says.

    Attributes:
        path: the file.
        name: its path below the folder that was given, with forward slashes.
        seconds: how long it is.
        rate: frames per second in the file.
        channels: samples per frame.
        note: what is wrong with a file that can be used all the same, such as
            'truncated: 33,064 of 66,150 frames'; else ''.
    """

    path: pathlib.Path
    name: str
    seconds: float
    rate: int
    channels: int
    note: str = ""


def list_recordings(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The sound files in a folder and the folders below it, by name; hidden ones are left out."""
    for path in list_files(pathlib.Path(folder)):
        if path.suffix.lower() in SUFFIXES:
            yield path


def probe_recording(path: str | os.PathLike, name: str = "") -> Recording:
    """Reads the head of a sound file.

    Args:
        path: the file.
        name: what to call it; without one, its path.

    Raises:
        Unreadable: with the reason, in a few words, if the file cannot be used.
        UserError: soundfile is not installed.
    """
    path = pathlib.Path(path)
    with _opened(path) as file:
        frames, rate, channels = file.frames, file.samplerate, file.channels
    _check(frames, rate)
    return Recording(
        path,
        name or path.as_posix(),
        frames / rate,
        rate,
        channels,
        truncation.describe_truncation(path, frames),
    )


def stream_samples(
    recording: Recording,
    rate: int,
    channel: str = "mean",
    tell: Callable[[str], None] = lambda note: None,
) -> Iterator[np.ndarray]:
    """Reads a recording block by block, as one channel at another rate.

    The file is opened once and read in order.

    Args:
        recording: of `probe_recording`.
        rate: samples per second of the blocks.
        channel: 'mean' of all channels, or the number of one: '0' is the first, the left one.
        tell: is told a note where the file turns out to be shorter than its head says.

    Yields:
        float32 `[n]`, n > 0.

    Raises:
        Unreadable: with the reason, if nothing can be read, the channel is not there, or a sample is
            NaN or infinite.
        UserError: a library is not installed, or the channel is no number.
    """
    resample = _resampler(recording.rate, rate)
    for block in _mono(recording, channel, tell):
        yield from resample(block)
    yield from resample(None)


def _mono(recording: Recording, channel: str, tell: Callable[[str], None]) -> Iterator[np.ndarray]:
    """float32 `[n]` at the file's own rate."""
    error_of_library = require_library("soundfile").LibsndfileError
    index = _channel(channel)
    with _opened(recording.path) as file:
        _check(file.frames, file.samplerate)
        if file.samplerate != recording.rate or file.channels != recording.channels:
            raise Unreadable("the file has changed since it was looked at")
        if index is not None and index >= file.channels:
            raise Unreadable(f"no channel {index}: it has {file.channels}")
        frames = 0
        while frames < file.frames:
            try:
                block = file.read(_FRAMES, dtype="float32", always_2d=True)
            except error_of_library as error:
                if not frames:
                    raise Unreadable(f"nothing can be read: {_reason(error)}") from error
                break
            if not len(block):
                break
            frames += len(block)
            # In double precision the mean of two samples near the greatest float stays finite.
            mono = block.mean(axis=1, dtype=np.float64) if index is None else block[:, index]
            mono = mono.astype(np.float32)
            if not np.isfinite(mono).all():
                raise Unreadable("nonfinite")
            yield mono
        if not frames:
            raise Unreadable("nothing can be read")
        if frames < file.frames - (_MPEG_FRAME if "MPEG" in file.subtype else 0):
            tell(truncation.describe_missing_frames(frames, file.frames))


def _resampler(source: int, target: int) -> Callable[[np.ndarray | None], Iterator[np.ndarray]]:
    """A function from blocks, and None for the end, to blocks at another rate."""
    if source == target:
        return lambda block: iter(() if block is None else (block,))
    soxr = require_library("soxr")
    resampler = soxr.ResampleStream(source, target, 1, dtype="float32")
    offset = None

    def resample(block: np.ndarray | None) -> Iterator[np.ndarray]:
        nonlocal offset
        if offset is None:
            if block is None:
                return
            # To the filter, sound begins and ends with zero: a constant would ring at both ends.
            offset = block[0]
        last = block is None
        block = np.zeros(0, np.float32) if last else block - offset
        block = resampler.resample_chunk(block, last=last) + offset
        if not np.isfinite(block).all():
            raise Unreadable("nonfinite")
        if len(block):
            yield block

    return resample


def _opened(path: pathlib.Path):
    """An open `soundfile.SoundFile`.

    Raises:
        Unreadable: with the reason, if it is no sound file.
    """
    soundfile = require_library("soundfile")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # One would wait for a pipe for ever.
            raise Unreadable("not a regular file")
        if not status.st_size:
            raise Unreadable("the file is empty")
        open(path, "rb").close()  # libsndfile does not say why it may not.
        # A name need not be UTF-8: as bytes it is taken as it is.
        return soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else str(path))
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror or error}") from error
    except (soundfile.SoundFileError, TypeError) as error:
        raise Unreadable(f"not a sound file that can be read: {_reason(error)}") from error


def _check(frames: int, rate: int) -> None:
    if frames <= 0:
        raise Unreadable("no frames")
    if frames >= MOST_FRAMES:
        raise Unreadable(f"damaged: its head promises {frames:,} frames")
    if not 0 < rate <= MOST_RATE:
        raise Unreadable(f"damaged: its head says {rate:,} frames a second")


def _channel(channel: str) -> int | None:
    if channel == "mean":
        return None
    if not str(channel).isdecimal():
        raise UserError(
            f"--config.audio.channel={channel}: choose mean, or the number of one from 0."
        )
    return int(channel)


def _reason(error: Exception) -> str:
    """What the library says, without the path and the full stop."""
    return " ".join(getattr(error, "error_string", str(error)).split()).rstrip(".").lower()
