"""Guesses the content of a file that is no sound file, to say why it cannot be read."""

import os

_ADVICE = "convert it to WAV or FLAC"
# Position, bytes and description; the first match counts.
_KNOWN = (
    (4, b"ftyp", f"MPEG-4, such as AAC or ALAC: {_ADVICE}"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", f"Windows Media: {_ADVICE}"),
    (0, b"\x1a\x45\xdf\xa3", f"Matroska or WebM: {_ADVICE}"),
    (0, b"#!AMR", f"AMR: {_ADVICE}"),
    (0, b"MAC ", f"Monkey's Audio: {_ADVICE}"),
    (0, b"wvpk", f"WavPack: {_ADVICE}"),
    (0, b"TTA", f"True Audio: {_ADVICE}"),
    (0, b"DSD ", f"DSD: {_ADVICE}"),
    (0, b"FRM8", f"DSD: {_ADVICE}"),
    (0, b"MPCK", f"Musepack: {_ADVICE}"),
    (0, b".RMF", f"RealAudio: {_ADVICE}"),
    (0, b"WAC ", f"Wildlife Acoustics WAC: {_ADVICE} with its Kaleidoscope"),
    (28, b"Speex", f"Speex: {_ADVICE}"),
    (0, b"\x0b\x77", f"AC-3: {_ADVICE}"),
    (0, b"\xff\xf1", f"AAC: {_ADVICE}"),
    (0, b"\xff\xf9", f"AAC: {_ADVICE}"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x89PNG", "a picture"),
    (0, b"\xff\xd8\xff", "a picture"),
    (0, b"version https://git-lfs", "a pointer of Git LFS instead of the file: git lfs pull"),
    (0, b"ID3", "it begins like an MP3, and has no sound that can be decoded"),
)
_HEAD = 4096


def describe_content(path: str | os.PathLike) -> str:
    """Returns a few words on the content of a file; '' if it is unknown."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    for position, magic, words in _KNOWN:
        if head[position:].startswith(magic):
            return words
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    if not head.strip(b"\0"):
        return "it begins with zeros"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "it begins like an MP3, and has no sound that can be decoded"
    try:
        text = head.decode("utf-8", errors="ignore")
    except ValueError:
        return ""
    return "text" if text.isascii() and "\0" not in text and len(text) == len(head) else ""
