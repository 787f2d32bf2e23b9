"""Reads sound files in order and in blocks, so that long ones need no more memory than short ones."""

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
MAX_FRAMES = 2**40
"""A header with as many frames is damaged: at 48 kHz they would play for 265 days."""
MAX_RATE = 2**24
"""A header with a higher rate is damaged."""

# The frame count of an MP3 header includes up to one MPEG frame that decoders leave out at the ends.
_MPEG_FRAME = 1152

# Blocks are small because a truncated FLAC file loses its whole last block.
_BLOCK_FRAMES = 4096


class Unreadable(ValueError):
    """Short reason why a recording cannot be used, without its path and without a full stop."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """The header of a sound file.

    Attributes:
        path: the file.
        name: its path below the user's folder, with forward slashes.
        seconds: its length.
        rate: frames per second.
        channels: samples per frame.
        note: problem of a file that can be used nevertheless, such as 'truncated: 33,064 of 66,150
            frames'; otherwise ''.
    """

    path: pathlib.Path
    name: str
    seconds: float
    rate: int
    channels: int
    note: str = ""


def list_recordings(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields the sound files in a folder and the folders below it, sorted by name, without hidden ones."""
    for path in list_files(pathlib.Path(folder)):
        if path.suffix.lower() in SUFFIXES:
            yield path


def probe_recording(path: str | os.PathLike, name: str = "") -> Recording:
    """Reads the header of a sound file; raises `Unreadable` if it cannot be used.

    Without a `name` it goes by its path.
    """
    path = pathlib.Path(path)
    with _open(path) as file:
        frames, rate, channels = file.frames, file.samplerate, file.channels
    _check_header(frames, rate)
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
    report: Callable[[str], None] = lambda note: None,
) -> Iterator[np.ndarray]:
    """Reads a recording block by block, as one channel at another rate.

    Args:
        recording: from `probe_recording`.
        rate: samples per second of the blocks.
        channel: 'mean' of all channels, or the number of one; '0' is the first (left) one.
        report: called with a note if the file is shorter than its header says.

    Yields:
        float32 `[n]`, n > 0.

    Raises:
        Unreadable: if nothing can be read, the channel does not exist, or a sample is NaN or infinite.
    """
    resample = _make_resampler(recording.rate, rate)
    for block in _stream_mono(recording, channel, report):
        yield from resample(block)
    yield from resample(None)


def _stream_mono(
    recording: Recording, channel: str, report: Callable[[str], None]
) -> Iterator[np.ndarray]:
    """Yields one channel as float32 `[n]` at the file's own rate."""
    decoding_error = require_library("soundfile").LibsndfileError
    index = _parse_channel(channel)
    with _open(recording.path) as file:
        _check_header(file.frames, file.samplerate)
        if file.samplerate != recording.rate or file.channels != recording.channels:
            raise Unreadable("the file has changed since its header was read")
        if index is not None and index >= file.channels:
            raise Unreadable(f"no channel {index}: it has {file.channels}")
        frames = 0
        while frames < file.frames:
            try:
                block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
            except decoding_error as error:
                if not frames:
                    raise Unreadable(f"nothing can be read: {_describe_error(error)}") from error
                break
            if not len(block):
                break
            frames += len(block)
            # Double precision keeps the mean of two samples near the largest float finite.
            mono = block.mean(axis=1, dtype=np.float64) if index is None else block[:, index]
            mono = mono.astype(np.float32)
            if not np.isfinite(mono).all():
                raise Unreadable("nonfinite")
            yield mono
        if not frames:
            raise Unreadable("nothing can be read")
        if frames < file.frames - (_MPEG_FRAME if "MPEG" in file.subtype else 0):
            report(truncation.describe_missing_frames(frames, file.frames))


def _make_resampler(
    source: int, target: int
) -> Callable[[np.ndarray | None], Iterator[np.ndarray]]:
    """Returns a function that maps blocks, and None at the end, to blocks at another rate."""
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
            # The filter assumes silence before and after, and an offset would ring at both ends.
            offset = block[0]
        last = block is None
        block = np.zeros(0, np.float32) if last else block - offset
        block = resampler.resample_chunk(block, last=last) + offset
        if not np.isfinite(block).all():
            raise Unreadable("nonfinite")
        if len(block):
            yield block

    return resample


def _open(path: pathlib.Path):
    """Opens a `soundfile.SoundFile`; raises `Unreadable` if it is not a sound file."""
    soundfile = require_library("soundfile")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # Reading a pipe might block for ever.
            raise Unreadable("not a regular file")
        if not status.st_size:
            raise Unreadable("the file is empty")
        open(path, "rb").close()  # Unlike libsndfile, this says why a file cannot be opened.
        # As bytes, because names need not be UTF-8.
        return soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else str(path))
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror or error}") from error
    except (soundfile.SoundFileError, TypeError) as error:
        raise Unreadable(f"not a sound file that can be read: {_describe_error(error)}") from error


def _check_header(frames: int, rate: int) -> None:
    if frames <= 0:
        raise Unreadable("no frames")
    if frames >= MAX_FRAMES:
        raise Unreadable(f"damaged: its header says {frames:,} frames")
    if not 0 < rate <= MAX_RATE:
        raise Unreadable(f"damaged: its header says {rate:,} frames per second")


def _parse_channel(channel: str) -> int | None:
    if channel == "mean":
        return None
    if not str(channel).isdecimal():
        raise UserError(
            f"--config.audio.channel={channel}: choose mean, or the number of a channel from 0."
        )
    return int(channel)


def _describe_error(error: Exception) -> str:
    """Returns the library's message, without the path and the full stop."""
    return " ".join(getattr(error, "error_string", str(error)).split()).rstrip(".").lower()
