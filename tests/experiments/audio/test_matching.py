"""Paths in tables, and the recordings that they mean."""

import time
import unicodedata
from pathlib import Path

import pytest

from experiments.audio.matching import match_files


def match(files, names, folder="/data/rec"):
    """Returns the recordings of the files, None for those that are skipped."""
    matched, skipped = match_files(files, Path(folder), names)
    assert {file for file, _ in skipped} == set(files) - matched.keys()
    return [matched.get(file) for file in files]


NFC, NFD = (unicodedata.normalize(form, "Grünfink 1.wav") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("files", "names", "expected"),
    [
        # Recorders give the same names in all folders.
        (["siteA/t.WAV", "siteB/t.WAV"], ["siteB/t.WAV"], [None, "siteB/t.WAV"]),
        (["D:\\siteA\\t.wav", "/x/siteB/t.wav"], ["s/siteB/t.wav"], [None, "s/siteB/t.wav"]),
        (["siteA/t.wav", "siteB/t.wav"], ["t.wav"], [None, None]),
        (["/data/rec/t.wav", "/old/rec/t.wav"], ["t.wav"], ["t.wav", None]),
        (["siteA/t.wav", "siteB/t.wav"], ["s/siteB/t.wav", "t.wav"], [None, "s/siteB/t.wav"]),
        (["t.wav", "t.mp3"], ["t.wav"], ["t.wav", None]),
        # The longest end counts, and no recording is preferred because it is in no folder.
        (["/old/siteB/x.wav"], ["x.wav", "siteB/x.wav"], ["siteB/x.wav"]),
        (["x.wav", "/old/x.wav"], ["x.wav", "siteB/x.wav"], [None, None]),
        (["x.wav", "siteB/x.wav"], ["x.wav", "siteB/x.wav"], ["x.wav", "siteB/x.wav"]),
        (["./x.wav", "file:///data/rec/siteB/x.wav"], ["x.wav", "siteB/x.wav"], ["x.wav", "siteB/x.wav"]),
        (["rec/siteA/t.wav", "rec/t.wav"], ["siteA/t.wav", "t.wav"], ["siteA/t.wav", "t.wav"]),
        # One recording may be written in several ways, and folders be moved.
        (["a.wav", "/x/s1/a.wav", "S1\\A", "s1/a.wav"], ["s1/a.wav"], ["s1/a.wav"] * 4),
        (["/old/place/a.wav"], ["s1/a.wav"], ["s1/a.wav"]),
        # Accents, capitals and suffixes, but what is written exactly so comes first.
        ([NFC], [NFD], [NFD]),
        ([NFD, NFC], [NFC, NFD], [NFD, NFC]),
        (["rec1.wav"], ["rec1.WAV"], ["rec1.WAV"]),
        (["rec1.wav"], ["rec1.flac"], ["rec1.flac"]),
        (["rec1.wav"], ["rec1.flac", "rec1.mp3"], [None]),
        (["rec1.wav"], ["rec1.flac", "rec1.wav"], ["rec1.wav"]),
        (["x.wav"], ["x.wav", "X.WAV"], ["x.wav"]),
        (["a.c", "a"], ["a.c.wav"], ["a.c.wav", None]),
        (["gone.wav", "", "/"], ["a.wav"], [None, None, None]),
    ],
)  # fmt: skip
def test_files_of_a_table(files, names, expected):
    assert match(files, names) == expected


def test_many_recordings_are_matched_in_little_time():
    names = [f"site{site}/2019/{number:06d}.wav" for site in range(100) for number in range(100)]
    start = time.process_time()
    assert match([f"/old/{name}" for name in names], names) == names
    assert time.process_time() - start < 10  # 0.3 s
