"""Reads sound files in order and in blocks, so that long ones need no more memory than short ones."""

import contextlib
import dataclasses
import io
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.audio import containers, contents, flac, mpeg
from experiments.audio.require import require_library
from experiments.core.errors import UserError
from experiments.core.listing import list_files

SUFFIXES = tuple(
    ".aif .aifc .aiff .au .bwf .caf .flac .mp2 .mp3 .mpga .nist .oga .ogg .opus .rf64 .snd .sph .voc "
    ".w64 .wav .wave".split()
)
"""Suffixes of sound files that can be read."""
FOREIGN_SUFFIXES = tuple(
    ".3gp .aac .ac3 .alac .amr .ape .dff .dsf .dts .m4a .m4b .mka .mp4 .mpc .ra .raw .spx .tta .wac "
    ".weba .webm .wma .wv".split()
)
"""Suffixes of sound files that libsndfile cannot read: they are listed with the reason."""
MAX_FRAMES = 2**40
"""A header with as many frames is damaged: at 48 kHz they would play for 265 days."""
MAX_RATE = 2**24
"""A header with a higher rate is damaged."""

# Bytes per sample, by libsndfile's name; sound that has no fixed size is not here.
_SAMPLE_BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
# libsndfile reads no more of a sound whose header says that its size is unknown.
_LIBRARY_LIMIT = 0xFFFFFFFF
# libsndfile says this of an MP3 that it cannot decode.
_MISLEADING = "file does not exist or is not a regular file"
# The mean of channels is taken for silence if it has less than this share of their power.
_CANCELLED = 1e-4

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


def list_recordings(
    folder: str | os.PathLike, suffixes: tuple[str, ...] = SUFFIXES
) -> Iterator[pathlib.Path]:
    """Yields the sound files in a folder and the folders below it, sorted by name, without hidden ones."""
    for path in list_files(pathlib.Path(folder)):
        if path.suffix.lower() in suffixes:
            yield path


def probe_recording(path: str | os.PathLike, name: str = "") -> Recording:
    """Reads the header of a sound file; raises `Unreadable` if it cannot be used.

    Without a `name` it goes by its path.
    """
    path = pathlib.Path(path)
    with _open(path) as sound:
        rate, channels = sound.file.samplerate, sound.file.channels
    return Recording(path, name or path.as_posix(), sound.frames / rate, rate, channels, sound.note)


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
        report: called with a note if the file is shorter than its header says, or if the channels cancel
            each other out.

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
    index = _parse_channel(channel)
    with _open(recording.path) as sound:
        file = sound.file
        if file.samplerate != recording.rate or file.channels != recording.channels:
            raise Unreadable("the file has changed since its header was read")
        if index is not None and index >= file.channels:
            raise Unreadable(f"no channel {index}: it has {file.channels}")
        frames, power_of_mean, power = 0, 0.0, 0.0
        for block in _read_blocks(sound):
            frames += len(block)
            # Double precision keeps the mean of two samples near the largest float finite.
            mono = block.mean(axis=1, dtype=np.float64) if index is None else block[:, index]
            if not np.isfinite(mono).all():
                raise Unreadable("nonfinite")
            if index is None and file.channels > 1:
                power_of_mean += float(np.square(mono).sum())
                power += float(np.square(block, dtype=np.float64).sum()) / file.channels
            yield mono.astype(np.float32)
        if not frames:
            raise Unreadable("nothing can be read")
        if frames < sound.frames - (_MPEG_FRAME if "MPEG" in file.subtype else 0):
            report(containers.describe_missing_frames(frames, sound.frames))
        if power_of_mean < _CANCELLED * power:
            report(
                "its channels cancel each other out: their mean is silence, and --config.audio.channel=0 is "
                "the first of them"
            )


def _read_blocks(sound: "_OpenSound") -> Iterator[np.ndarray]:
    """Yields blocks of a sound, float32 `[n, channels]`, up to its end or to damage."""
    decoding_error = require_library("soundfile").LibsndfileError
    left = sound.frames
    while left > 0:
        try:
            block = sound.file.read(min(_BLOCK_FRAMES, left), dtype="float32", always_2d=True)
        except decoding_error as error:
            if left == sound.frames:
                raise Unreadable(f"nothing can be read: {_describe_error(error)}") from error
            return
        if not len(block):
            return
        left -= len(block)
        yield block


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


@dataclasses.dataclass(frozen=True)
class _OpenSound:
    """An open `soundfile.SoundFile`, the number of its frames, and a note on its header."""

    file: Any
    frames: int
    note: str


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[_OpenSound]:
    """Opens a sound file with all of its sound; raises `Unreadable` if there is none."""
    with contextlib.ExitStack() as stack:
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # Reading a pipe might block for ever.
                raise Unreadable("not a regular file")
            if not status.st_size:
                raise Unreadable("the file is empty")
            open(path, "rb").close()  # Unlike libsndfile, this says why a file cannot be opened.
            file = stack.enter_context(_open_with_library(path))
            sound = _find_all_frames(path, file, stack)
        except OSError as error:
            raise Unreadable(f"cannot be opened: {error.strerror or error}") from error
        _check_header(sound.frames, sound.file.samplerate, sound.note)
        yield sound


def _open_with_library(path: pathlib.Path) -> Any:
    """Opens a `soundfile.SoundFile`; raises `Unreadable` with the reason if that fails."""
    soundfile = require_library("soundfile")
    try:
        # As bytes, because names need not be UTF-8.
        return soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else str(path))
    except (soundfile.SoundFileError, TypeError) as error:
        reason = _describe_error(error)
        if not reason or _MISLEADING in reason or isinstance(error, TypeError):
            reason = "nothing in it can be decoded"
        content = contents.describe_content(path)
        content = f" ({content})" if content else ""
        raise Unreadable(f"not a sound file that can be read: {reason}{content}") from error


def _find_all_frames(path: pathlib.Path, file: Any, stack: contextlib.ExitStack) -> _OpenSound:
    """Returns an open file with all the frames that it has, though its header may say fewer."""
    frame_bytes = _SAMPLE_BYTES.get(file.subtype, 0) * file.channels
    sound = containers.locate_sound(path)
    if sound is None:
        return _find_compressed_frames(path, file, stack)
    frames = sound.present // frame_bytes if frame_bytes else file.frames
    if frames > file.frames:
        # If the library counts frames in another way than by the header, its way is right.
        promised = _LIBRARY_LIMIT if sound.promised is None else sound.promised
        if abs(file.frames - promised // frame_bytes) > 1:
            return _OpenSound(file, file.frames, "")
        raw = {
            "samplerate": file.samplerate,
            "channels": file.channels,
            "subtype": file.subtype,
            "endian": "BIG" if sound.big_endian else "LITTLE",
            "format": "RAW",
        }
        file = _open_part(stack, path, b"", sound.begin, **raw)
        frames = min(frames, file.frames)
    return _OpenSound(file, frames, containers.describe_size(sound, frames, frame_bytes))


def _find_compressed_frames(
    path: pathlib.Path, file: Any, stack: contextlib.ExitStack
) -> _OpenSound:
    """Returns an open MP3 or FLAC file with a header that states its true length, and others as they are."""
    head, stated = b"", file.frames
    if file.format == "MP3":
        head = mpeg.add_length(path, stated)
        whole = head and _open_part(stack, path, head, 0)
    elif file.format == "FLAC":
        head = flac.correct_header(path)
        whole = head and _open_part(stack, path, head, flac.HEADER)
    if not head:
        return _OpenSound(file, stated, containers.describe_ogg(path))
    if stated >= MAX_FRAMES:  # A program that wrote into a pipe did not know the length.
        return _OpenSound(whole, whole.frames, "")
    note = f"its header says {stated:,} frames, and {whole.frames:,} are there"
    return _OpenSound(whole, whole.frames, note)


class _Part(io.RawIOBase):
    """A file with other bytes in place of its beginning, for libsndfile's callbacks."""

    def __init__(self, path: pathlib.Path, head: bytes, begin: int):
        super().__init__()
        self._file = open(path, "rb")
        self._head, self._begin = head, begin
        self._size = len(head) + max(os.fstat(self._file.fileno()).st_size - begin, 0)
        self._at = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        head = self._head[self._at : self._at + len(view)]
        self._file.seek(self._begin + max(self._at - len(self._head), 0))
        try:
            content = head + self._file.read(len(view) - len(head))
        except OSError:  # libsndfile cannot pass it on; the missing end is noted.
            content = head
        view[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_part(
    stack: contextlib.ExitStack, path: pathlib.Path, head: bytes, begin: int, **options: Any
) -> Any:
    """Opens a `soundfile.SoundFile` of `head` and the bytes of a file from `begin` on."""
    part = stack.enter_context(contextlib.closing(_Part(path, head, begin)))
    return stack.enter_context(require_library("soundfile").SoundFile(part, **options))


def _check_header(frames: int, rate: int, note: str) -> None:
    if frames <= 0:
        raise Unreadable(f"no frames: {note}" if note else "no frames")
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
