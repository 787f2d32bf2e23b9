"""Damaged headers of sound files and damaged selection tables: no traceback, no hang, nothing lost unsaid."""

import struct
from pathlib import Path

import numpy as np
import pytest

from experiments.audio import annotations, recordings
from tests.fuzz import EDGES, mutate, run_fuzz

pytestmark = pytest.mark.long
soundfile = pytest.importorskip("soundfile")

SEED = 20_240
COUNT = 4_000
FRAMES = 3_000
HEAD = 64
"""Bytes of a header that are damaged; the samples after it stay."""


def read_sound(path: Path) -> None:
    """Reads a recording; fewer frames than before need a note."""
    recording = recordings.probe_recording(path)
    notes = [recording.note] if recording.note else []
    read = sum(
        len(block)
        for block in recordings.stream_samples(recording, recording.rate, report=notes.append)
    )
    size = path.stat().st_size
    if recording.channels == 1 and read < 0.99 * FRAMES and size >= 2 * FRAMES:
        is_said = any("frames" in note or "bytes" in note for note in notes)
        assert is_said or _is_explained(path), (read, notes)


def _is_explained(path: Path) -> bool:
    """Returns whether the header has samples of another size, or an AIFF says that they begin later."""
    head = path.read_bytes()[: 2 * HEAD]
    place = head.find(b"SSND") + 8
    with soundfile.SoundFile(path) as file:
        return file.subtype != "PCM_16" or (place > 8 and head[place : place + 4] != bytes(4))


@pytest.mark.parametrize(
    "name", ["x.wav", "x.w64", "x.rf64", "x.aiff", "x.au", "x.caf", "x.flac", "x.mp3", "x.ogg"]
)
def test_sound_files(save, rng, name):
    container = {"x.w64": "W64", "x.rf64": "RF64"}.get(name)
    path = save(name, rng.standard_normal(FRAMES) / 10, format=container)
    tokens = (*EDGES, b"data", b"RIFF", b"LIST", b"fmt ", struct.pack("<I", 2 * FRAMES + 2))

    def damage(data: bytes, rng: np.random.Generator) -> bytes:
        return mutate(data[:HEAD], rng, tokens) + data[HEAD:]

    outcomes = run_fuzz(
        path, lambda: read_sound(path), recordings.Unreadable, COUNT, SEED, 1.0, damage
    )
    print(name, dict(outcomes))
    assert outcomes["read"] > COUNT / 50


TABLE = (
    "Selection\tView\tBegin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tSpecies\n"
    "1\tWaveform 1\t0.5\t1.5\tx.wav\t0.5\twren\n1\tSpectrogram 1\t0.5\t1.5\tx.wav\t0.5\twren\n"
    "2\tSpectrogram 1\t2,5\t3\tx.wav\t2,5\tGrünfink\n3\tSpectrogram 1\t4\t5\tx.wav\t4\trobin\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_selection_tables(tmp_path, encoding):
    path = tmp_path / "x.Table.1.selections.txt"
    path.write_bytes(TABLE.encode(encoding))

    def read() -> None:
        found = annotations.read_annotations(tmp_path, ["x.wav"])
        for row in found.rows:
            assert 0 <= row.start < row.end < float("inf") and row.label
        assert found.rows or found.skipped or not _has_rows(path)

    outcomes = run_fuzz(path, read, (), COUNT, SEED)
    assert outcomes["read"] == COUNT


def _has_rows(path: Path) -> bool:
    return len(path.read_bytes().split(b"\n")) > 2
