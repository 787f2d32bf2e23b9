"""Counts the frames of MP3 files, because libmpg123 guesses the length of one without a table of contents.

It multiplies the size of the first frame: where the bit rate changes, it stops early, or at the end of the
first of several files that somebody has joined.
"""

import mmap
import os
import struct
from typing import NamedTuple

# Kilobits per second by index, of layer III: MPEG 1, and MPEG 2 and 2.5.
_BITRATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = (44100, 48000, 32000)
_MONO = 3
_TOLERANCE = 4  # MPEG frames


class _Frame(NamedTuple):
    """The header of an MPEG frame: `kind` has version, layer and rate, which stay the same in a file."""

    kind: int
    size: int
    samples: int
    body: int
    """Bytes of header and side information, after which a table of contents begins."""


def add_length(path: str | os.PathLike, samples: int) -> bytes:
    """Returns a frame that states the true length, to put before an MP3; b'' if `samples` is right."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        begin = _skip_tag(content)
        first = _parse_frame(content, begin)
        if first is None or _has_length(content, begin, first):
            return b""
        count = _count_frames(content, begin, first.kind)
        if count * first.samples <= samples + _TOLERANCE * first.samples:
            return b""
        return _make_frame(content[begin : begin + 4], count)


def _skip_tag(content: mmap.mmap) -> int:
    """Returns the position after an ID3 tag at the beginning."""
    if content[:3] != b"ID3" or len(content) < 10:
        return 0
    size = 0
    for byte in content[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _parse_frame(content: bytes | mmap.mmap, position: int) -> _Frame | None:
    """Returns the header of the MPEG frame of layer III at a position; None if there is none."""
    head = content[position : position + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return None
    is_first = head[1] & 0x18 == 0x18  # MPEG 1
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] // (1 if is_first else 2 if head[1] & 0x10 else 4)
    samples = 1152 if is_first else 576
    kilobits = _BITRATES[not is_first][bitrate]
    size = samples // 8 * 1000 * kilobits // hertz + (head[2] >> 1 & 1)
    mono = head[3] >> 6 == _MONO
    side = (17 if mono else 32) if is_first else (9 if mono else 17)
    return _Frame((head[1] & 0xFE) << 8 | rate, size, samples, 4 + side)


def _has_length(content: mmap.mmap, begin: int, first: _Frame) -> bool:
    """Returns whether the first frame states frames and bytes, and these are all of the file."""
    place = begin + first.body
    fields = content[place : place + 16]
    if len(fields) < 16 or fields[:4] not in (b"Xing", b"Info"):
        return False
    flags, _, size = struct.unpack(">III", fields[4:])
    # Tags and pictures may come after the sound.
    return flags & 3 == 3 and begin + size >= 0.98 * len(content)


def _count_frames(content: mmap.mmap, begin: int, kind: int) -> int:
    """Returns the number of MPEG frames, without those that state a length."""
    position, count = begin, 0
    while 0 <= position < len(content):
        frame = _parse_frame(content, position)
        if frame is None or frame.kind != kind:
            position = content.find(b"\xff", position + 1)
            continue
        place = position + frame.body
        count += content[place : place + 4] not in (b"Xing", b"Info")
        position += frame.size
    return count


def _make_frame(head: bytes, count: int) -> bytes:
    """Returns a frame without sound that states the number of MPEG frames after it."""
    # Without a checksum; index 9 of the bit rates has room for the fields in all versions.
    head = bytes([head[0], head[1] | 1, 9 << 4 | head[2] & 0x0C, head[3]])
    frame = _parse_frame(head, 0)
    assert frame is not None
    return (head.ljust(frame.body, b"\0") + b"Xing" + struct.pack(">II", 1, count)).ljust(
        frame.size, b"\0"
    )
