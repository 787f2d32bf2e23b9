"""Detects WAV, AIFF and Ogg files that end early, which the libraries that read them do not report."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

# A program that writes into a pipe does not know the length: it leaves the sizes at 0 or at the maximum.
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)

_MAX_OGG_PAGE = 27 + 255 + 255 * 255  # bytes


def describe_truncation(path: Path, frames: int) -> str:
    """Describes what is missing at the end of a WAV, AIFF or Ogg file.

    Args:
        path: a regular file of any format.
        frames: number of frames that can be read from it.

    Returns:
        A note such as 'truncated: 33,064 of 66,150 frames'; '' if nothing is missing or the file has
        another format.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"OggS":
            return _describe_ogg(file, size)
        if len(head) < 12 or head[:4] not in (b"RIFF", b"FORM"):
            return ""
        order = "<" if head[:4] == b"RIFF" else ">"
        frame_bytes = 0
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack(order + "4sI", chunk)
            begin = file.tell()
            if name in (b"data", b"SSND"):
                # Only the chunk's size counts: the file's size in the header is often slightly wrong.
                if length not in _UNKNOWN_SIZES and begin + length > size:
                    offset = 8 if name == b"SSND" else 0  # Its offset and block size.
                    return _describe_chunk(
                        frames, size - begin - offset, length - offset, frame_bytes
                    )
            elif name == b"fmt ":
                frame_bytes = _parse_wav_frame(file.read(min(length, 16)))
            elif name == b"COMM":
                frame_bytes = _parse_aiff_frame(file.read(min(length, 22)))
            # Chunks are padded to an even length.
            file.seek(begin + length + length % 2, os.SEEK_SET)
    return ""


def describe_missing_frames(frames: int, promised: int) -> str:
    """Returns the note for a recording of which only the first frames can be read."""
    return f"truncated: {frames:,} of {promised:,} frames"


def _describe_ogg(file: BinaryIO, size: int) -> str:
    """Returns the note for an Ogg file, whose last page has a mark and the lengths of its segments."""
    file.seek(max(size - _MAX_OGG_PAGE, 0))
    rest = file.read()
    page = rest[max(rest.rfind(b"OggS"), 0) :]
    if len(page) > 27 and page[5] & 4:
        num_segments = page[26]
        if len(page) >= 27 + num_segments + sum(page[27 : 27 + num_segments]):
            return ""
    return "truncated: its last page is missing"


def _describe_chunk(frames: int, present: int, promised: int, frame_bytes: int) -> str:
    if frame_bytes:
        return describe_missing_frames(frames, promised // frame_bytes)
    return f"truncated: {max(present, 0):,} of {promised:,} bytes of sound"


def _parse_wav_frame(chunk: bytes) -> int:
    """Returns the bytes per frame; 0 if frames have no fixed size (MP3 inside WAV)."""
    if len(chunk) < 16:
        return 0
    codec, _, _, _, frame_bytes, _ = struct.unpack("<HHIIHH", chunk)
    return frame_bytes if codec in (1, 3, 0xFFFE) else 0


def _parse_aiff_frame(chunk: bytes) -> int:
    """Returns the bytes per frame; 0 for compressed formats."""
    if len(chunk) < 8 or (len(chunk) == 22 and chunk[18:22] not in (b"NONE", b"sowt", b"twos")):
        return 0
    channels, _, bits = struct.unpack(">hIh", chunk[:8])
    return channels * ((bits + 7) // 8)
