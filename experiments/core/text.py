"""Reads text files of other programs, whose encoding nobody has written down."""

import codecs
import os
import re
from pathlib import Path

from experiments.core.listing import check_regular_file

# The mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A letter beyond ASCII in UTF-8; in Windows' encoding these would be two or three odd ones in a row.
_UTF8_LETTER = re.compile(
    rb"[\xc3-\xdf][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
HEAD = 65_536
"""Number of bytes from which `detect_encoding` tells the encoding."""


def read_text(path: str | os.PathLike) -> str:
    """Returns the text of a file in UTF-8, UTF-16, UTF-32 or Windows-1252, with its line ends as they are.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not text, or in another encoding.
    """
    check_regular_file(path)
    content = Path(path).read_bytes()
    encoding = detect_encoding(content[:HEAD])
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"it is no {encoding.removesuffix('-sig').upper()} text") from error
        text = _decode_windows(content)
    if encoding.startswith("utf-16") and "\u0a00" in text:  # A line end in two halves.
        raise ValueError("its UTF-16 text is damaged: a byte is missing")
    if "\0" in text:
        raise ValueError("it is not text: it has NUL characters")
    return text


def detect_encoding(head: bytes) -> str:
    """Returns the encoding of a text from its first bytes: by its mark, or by the zeros of UTF-16."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    # Tables are mostly ASCII, whose letters have a zero byte before or after each letter in UTF-16.
    even, odd = head[0::2], head[1::2]
    if odd.count(0) > 0.6 * len(odd) and even.count(0) < 0.2 * len(even):
        return "utf-16-le"
    if even.count(0) > 0.6 * len(even) and odd.count(0) < 0.2 * len(odd):
        return "utf-16-be"
    return "utf-8"


def _decode_windows(content: bytes) -> str:
    """Returns a text in Windows-1252, of which Latin-1 has the same letters."""
    if _UTF8_LETTER.search(content):
        raise ValueError("its encoding is unknown: parts of it are UTF-8, and others are not")
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError as error:
        raise ValueError(
            "its encoding is unknown: it is neither UTF-8 nor UTF-16 nor Windows-1252; save it as UTF-8"
        ) from error
