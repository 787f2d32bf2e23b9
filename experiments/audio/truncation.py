"""Whether a WAV, AIFF or Ogg file ends before its end: what reads them says nothing about that."""

import os
import pathlib
import struct
from typing import BinaryIO

# Who writes into a pipe cannot know the length: the sizes are left at zero or at their greatest.
_UNKNOWN = (0, 0x7FFFFFFF, 0xFFFFFFFF)

_MOST_PAGE = 27 + 255 + 255 * 255  # bytes of a page of Ogg


def describe_truncation(path: pathlib.Path, frames: int) -> str:
    """What is missing at the end of a WAV, AIFF or Ogg file.

    Args:
        path: a regular file of any format.
        frames: how many frames can be read from it.

    Returns:
        A note such as 'truncated: 33,064 of 66,150 frames', or '' where nothing is missing or the format
        is another.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"OggS":
            return _of_pages(file, size)
        if len(head) < 12 or head[:4] not in (b"RIFF", b"FORM"):
            return ""
        order = "<" if head[:4] == b"RIFF" else ">"
        per_frame = 0
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack(order + "4sI", chunk)
            begin = file.tell()
            if name in (b"data", b"SSND"):
                # The size of the whole file, before all chunks, is often some bytes wrong in good files.
                if length not in _UNKNOWN and begin + length > size:
                    extra = 8 if name == b"SSND" else 0  # its offset and block size
                    return _of_sound(frames, size - begin - extra, length - extra, per_frame)
            elif name == b"fmt ":
                per_frame = _wav_frame(file.read(min(length, 16)))
            elif name == b"COMM":
                per_frame = _aiff_frame(file.read(min(length, 22)))
            # Chunks are padded to an even length.
            file.seek(begin + length + length % 2, os.SEEK_SET)
    return ""


def _of_pages(file: BinaryIO, size: int) -> str:
    """The note for an Ogg file: its last page has a mark, and the lengths of what is in it."""
    file.seek(max(size - _MOST_PAGE, 0))
    rest = file.read()
    page = rest[max(rest.rfind(b"OggS"), 0) :]
    if (
        len(page) > 27
        and page[5] & 4
        and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    ):
        return ""
    return "truncated: its last page is missing"


def _of_sound(frames: int, there: int, promised: int, per_frame: int) -> str:
    if per_frame:
        return describe_missing_frames(frames, promised // per_frame)
    return f"truncated: {max(there, 0):,} of {promised:,} bytes of sound"


def describe_missing_frames(frames: int, promised: int) -> str:
    """The note for a recording of which only the first frames can be read."""
    return f"truncated: {frames:,} of {promised:,} frames"


def _wav_frame(form: bytes) -> int:
    """Bytes per frame, or 0 where a frame has no fixed number of them (MP3 inside WAV)."""
    if len(form) < 16:
        return 0
    kind, _, _, _, align, _ = struct.unpack("<HHIIHH", form)
    return align if kind in (1, 3, 0xFFFE) else 0


def _aiff_frame(common: bytes) -> int:
    if len(common) < 8 or (len(common) == 22 and common[18:22] not in (b"NONE", b"sowt", b"twos")):
        return 0
    channels, _, bits = struct.unpack(">hIh", common[:8])
    return channels * ((bits + 7) // 8)
