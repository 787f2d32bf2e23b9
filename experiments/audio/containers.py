"""Finds the sound in WAV, W64, AIFF, AU, CAF and Ogg files, and compares its size with the header's.

Headers lie: a recorder that loses power leaves the size at 0, sizes of 4 GiB and more wrap around, copies end
early. The libraries that read these files believe the header and say nothing.
"""

import dataclasses
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# Programs that write into a pipe do not know the length, and leave the size at 0 or near a maximum.
_UNKNOWN_SIZES = (0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MAX_CHUNKS = 10_000
# Tags of music players at the end of a file, which are no chunks.
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
# Concatenated files: the beginning of the next one looks like a chunk.
_NO_CHUNKS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"riff")
_CHUNK_NAME = re.compile(rb"[ -~]{4}")
_SAMPLED = 65_536  # bytes at the beginning of what follows the sound, of which zeros are padding

_MAX_OGG_PAGE = 27 + 255 + 255 * 255  # bytes


@dataclasses.dataclass(frozen=True)
class Sound:
    """The place of the samples in a file, in bytes.

    Attributes:
        begin: of the first sample.
        promised: the size by the header; None if it says that it does not know.
        present: the size of what is there, without other chunks, tags and padding after it.
        big_endian: the order of the bytes of a sample.
    """

    begin: int
    promised: int | None
    present: int
    big_endian: bool


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The chunks of a container.

    Attributes:
        first: position of the first chunk.
        header: its layout: name, in W64 the rest of it, and size.
        align: chunks begin at multiples of it.
        own: whether the size includes the header itself.
        skipped: bytes between the header of the chunk with the sound and the first sample.
    """

    first: int
    header: struct.Struct
    align: int = 2
    own: bool = False
    skipped: int = 0


_CAF = struct.Struct(">4sq")
_LAYOUTS = {
    b"RIFF": _Layout(12, struct.Struct("<4sI")),
    b"RF64": _Layout(12, struct.Struct("<4sI")),
    b"BW64": _Layout(12, struct.Struct("<4sI")),
    b"RIFX": _Layout(12, struct.Struct(">4sI")),
    b"FORM": _Layout(12, struct.Struct(">4sI"), skipped=8),  # Offset and block size.
    b"riff": _Layout(40, struct.Struct("<4s12xQ"), align=8, own=True),
    b"caff": _Layout(8, _CAF, align=1, skipped=4),  # The number of edits.
}


def locate_sound(path: Path) -> Sound | None:
    """Returns the place of the sound in a WAV, W64, AIFF, AU or CAF file; None for others."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        magic = file.read(4)
        if magic == b".snd":
            fields = file.read(8)
            if len(fields) < 8:
                return None
            begin, promised = struct.unpack(">II", fields)
            known = None if promised == 0xFFFFFFFF else promised
            return _measure(file, size, begin, known, True, lambda position: False)
        layout = _LAYOUTS.get(magic)
        return None if layout is None else _find_chunk(file, size, layout)


def describe_size(sound: Sound, frames: int, frame_bytes: int) -> str:
    """Returns a note if the size of a sound is not the header's; '' otherwise.

    Args:
        sound: from `locate_sound`.
        frames: number of frames that can be read.
        frame_bytes: size of a frame; 0 for compressed sound.
    """
    promised = sound.promised
    if promised is None or promised == sound.present:
        return ""
    if frame_bytes and promised // frame_bytes == frames:
        return ""
    if promised > sound.present:
        if frame_bytes:
            return describe_missing_frames(frames, promised // frame_bytes)
        return f"truncated: {max(sound.present, 0):,} of {promised:,} bytes of sound"
    if frame_bytes:
        return f"its header says {promised // frame_bytes:,} frames, and {frames:,} are there"
    return (
        f"its header says {promised:,} bytes of sound, and {sound.present - promised:,} more follow"
    )


def describe_missing_frames(frames: int, promised: int) -> str:
    """Returns the note for a recording of which only the first frames can be read."""
    return f"truncated: {frames:,} of {promised:,} frames"


def describe_ogg(path: Path) -> str:
    """Returns a note if an Ogg file has lost its end, or is several files joined; '' otherwise.

    libsndfile reads the first of joined files. The last page of a whole file has a mark.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(_MAX_OGG_PAGE)
        if not head.startswith(b"OggS"):
            return ""
        file.seek(max(size - _MAX_OGG_PAGE, 0))
        rest = file.read()
    page = rest[max(rest.rfind(b"OggS"), 0) :]
    if len(page) <= 27 or not page[5] & 4 or len(page) < _measure_ogg_page(page):
        return "truncated: its last page is missing"
    streams, begin = set(), 0  # A mark has the first page of each stream; they come first.
    while head[begin : begin + 4] == b"OggS" and len(head) > begin + 5 and head[begin + 5] & 2:
        streams.add(head[begin + 14 : begin + 18])
        begin += _measure_ogg_page(head[begin:])
    if page[14:18] not in streams:
        return "several Ogg files are joined in it; frames of the first one alone are read"
    return ""


def _measure_ogg_page(page: bytes) -> int:
    """Returns the bytes of a page: its header, the lengths of its segments, and these."""
    if len(page) < 27:
        return 27
    num_segments = page[26]
    return 27 + num_segments + sum(page[27 : 27 + num_segments])


def _find_chunk(file: BinaryIO, size: int, layout: _Layout) -> Sound | None:
    """Returns the place of the sound in a file of chunks; None if it has none."""
    position, long_size = layout.first, None
    for _ in range(_MAX_CHUNKS):
        chunk = _read_chunk(file, position, layout) if position < size else None
        if chunk is None:
            return None
        name, begin, length = chunk
        if name == b"ds64":  # RF64 keeps sizes of 64 bits here.
            fields = file.read(16)
            long_size = struct.unpack("<QQ", fields)[1] if len(fields) == 16 else None
        if name in (b"data", b"SSND"):
            big = layout.header.format.startswith(">")
            skipped = layout.skipped
            if name == b"SSND":
                offset = file.read(4)
                skipped += int.from_bytes(offset, "big") if len(offset) == 4 else 0
            promised = _find_promised(length, skipped, long_size)
            return _measure(
                file,
                size,
                begin + skipped,
                promised,
                big,
                lambda place: _has_chunks(file, place, size, layout),
            )
        if length < 0:
            return None
        position = _find_next(file, begin + length, size, layout)
    return None


def _find_promised(length: int, skipped: int, long_size: int | None) -> int | None:
    """Returns the size of the sound by the header; None if that is unknown."""
    if long_size is not None and length in _UNKNOWN_SIZES:
        length = long_size
    if length < 0 or (length in _UNKNOWN_SIZES and length):
        return None
    return max(length - skipped, 0)


def _measure(
    file: BinaryIO,
    size: int,
    begin: int,
    promised: int | None,
    big_endian: bool,
    has_chunks: Callable[[int], bool],
) -> Sound:
    """Returns the sound at `begin`, whose size is the header's if something known follows it."""
    rest = max(size - begin, 0)
    if promised is None or promised >= rest:
        return Sound(begin, promised, rest, big_endian)
    end = begin + promised
    if size - end < 8 or _is_padding(file, end, size) or has_chunks(end):
        return Sound(begin, promised, promised, big_endian)
    return Sound(begin, promised, rest, big_endian)


def _read_chunk(file: BinaryIO, position: int, layout: _Layout) -> tuple[bytes, int, int] | None:
    """Returns the name of a chunk, where its content begins, and the size of this; None at the end."""
    file.seek(position)
    head = file.read(layout.header.size)
    if len(head) < layout.header.size:
        return None
    name, length = layout.header.unpack(head)
    if layout.own:
        length = max(length - layout.header.size, 0)
    return name, position + layout.header.size, length


def _find_next(file: BinaryIO, end: int, size: int, layout: _Layout) -> int:
    """Returns the position of the chunk after one that ends at `end`; some programs do not pad odd ones."""
    padded = end + -end % layout.align
    if padded == end or padded >= size:
        return padded
    for position in (padded, end):
        file.seek(position)
        if _CHUNK_NAME.match(file.read(4)):
            return position
    return padded


def _has_chunks(file: BinaryIO, position: int, size: int, layout: _Layout) -> bool:
    """Returns whether there are only chunks, or a tag, from a position to the end of the file."""
    position = _find_next(file, position, size, layout)
    file.seek(position)
    if file.read(12).startswith(_TAGS):
        return True
    for _ in range(_MAX_CHUNKS):
        chunk = _read_chunk(file, position, layout)
        if chunk is None:
            return True
        name, begin, length = chunk
        if not _CHUNK_NAME.match(name) or name in _NO_CHUNKS or length < 0:
            return position > size - 8 or _is_padding(file, position, size)
        position = _find_next(file, begin + length, size, layout)
        if position > size + layout.align:
            return False
    return False


def _is_padding(file: BinaryIO, begin: int, size: int) -> bool:
    """Returns whether the rest of a file is zeros, by samples of it: it may have gigabytes."""
    step = max((size - begin - _SAMPLED) // 16, _SAMPLED)
    for position in range(begin, size, step):
        file.seek(position)
        if file.read(_SAMPLED).strip(b"\0"):
            return False
    file.seek(max(begin, size - _SAMPLED))
    return not file.read(_SAMPLED).strip(b"\0")
