"""Finds the true length of a FLAC file: its last frame has a number, and its header may say less or nothing.

Source: RFC 9639, sections 8.2 and 9.1.
"""

import os
from pathlib import Path

HEADER = 42
"""Bytes of a file's beginning, which end with its properties (STREAMINFO)."""
_TAIL = 1 << 18  # bytes in which the last frame begins
_TOTAL_MASK = (1 << 36) - 1


def read_total(header: bytes) -> int:
    """Returns the number of frames by the header; 0 if it says that it does not know."""
    return int.from_bytes(header[18:26], "big") & _TOTAL_MASK


def replace_total(header: bytes, frames: int) -> bytes:
    """Returns a header that says another number of frames."""
    properties = int.from_bytes(header[18:26], "big") & ~_TOTAL_MASK | frames
    return header[:18] + properties.to_bytes(8, "big") + header[26:]


def correct_header(path: Path) -> bytes:
    """Returns a header with the true length of a FLAC file; b'' if its own says as many frames, or more."""
    with open(path, "rb") as file:
        header = file.read(HEADER)
        if len(header) < HEADER or header[:4] != b"fLaC" or header[4] & 0x7F:
            return b""
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL, HEADER))
        tail = file.read()
    block = int.from_bytes(header[10:12], "big")
    frames = _find_end(tail, block)
    return replace_total(header, frames) if read_total(header) < frames <= _TOTAL_MASK else b""


def _find_end(tail: bytes, block: int) -> int:
    """Returns the number of audio frames before the end of the last FLAC frame; 0 if there is none."""
    position = len(tail)
    while (position := tail.rfind(b"\xff", 0, position)) >= 0:
        end = _parse_end(tail[position : position + 16], block)
        if end:
            return end
    return 0


def _parse_end(head: bytes, block: int) -> int:
    """Returns the number of audio frames up to the end of a FLAC frame; 0 if `head` begins none."""
    if len(head) < 16 or head[1] & 0xFE != 0xF8 or head[3] & 1 or head[3] >> 4 > 10:
        return 0
    number, place = _parse_number(head)
    code, rate_code = head[2] >> 4, head[2] & 15
    if number < 0 or code == 0 or rate_code == 15:
        return 0
    size = (
        192
        if code == 1
        else 576 << (code - 2)
        if code < 6
        else 256 << (code - 8)
        if code > 7
        else 0
    )
    if code in (6, 7):
        width = code - 5
        size = int.from_bytes(head[place : place + width], "big") + 1
        place += width
    place += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if _compute_crc8(head[:place]) != head[place]:
        return 0
    is_variable = head[1] & 1
    return (number if is_variable else number * block) + size


def _parse_number(head: bytes) -> tuple[int, int]:
    """Returns the number of a frame, which is coded like a letter in UTF-8, and where it ends; -1 if none."""
    first = head[4]
    if first < 0x80:
        return first, 5
    length = 8 - (first ^ 0xFF).bit_length()
    if not 2 <= length <= 7:
        return -1, 0
    number = first & (0x7F >> length)
    for byte in head[5 : 4 + length]:
        if byte & 0xC0 != 0x80:
            return -1, 0
        number = number << 6 | byte & 0x3F
    return number, 4 + length


def _compute_crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc
