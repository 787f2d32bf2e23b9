"""Headers that lie about the size of the sound after them."""

import struct
import time

import numpy as np
import pytest

from experiments.audio import flac, recordings

soundfile = pytest.importorskip("soundfile")

FRAMES = 16_000
CHUNK = b"LIST" + struct.pack("<I", 5) + b"INFOx"


@pytest.fixture
def sound(save, rng):
    """The samples of a WAV file, and its path and content."""
    samples = 0.1 * rng.standard_normal(FRAMES).astype(np.float32)
    path = save("x.wav", samples)
    return samples, path, path.read_bytes()


def read(path):
    """All samples of a file, and the note on it."""
    recording = recordings.probe_recording(path)
    blocks = list(recordings.stream_samples(recording, recording.rate))
    assert round(recording.seconds * recording.rate) == sum(map(len, blocks))
    return np.concatenate(blocks), recording.note


def state_size(content, size, riff=None):
    """The content of a WAV file with another size of its sound, and of the whole."""
    riff = content[4:8] if riff is None else struct.pack("<I", riff)
    place = content.index(b"data") + 4
    return content[:4] + riff + content[8:place] + struct.pack("<I", size) + content[place + 4 :]


@pytest.mark.parametrize("size", [1000, 0, 2 * FRAMES - 1000])
def test_sound_beyond_the_size_is_read_and_noted(sound, size):
    samples, path, content = sound
    for riff in (None, 8, 0, 0xFFFFFFFF):
        path.write_bytes(state_size(content, size, riff))
        found, note = read(path)
        np.testing.assert_allclose(found, samples, atol=1e-4)
        assert note == f"its header says {size // 2:,} frames, and 16,000 are there"


@pytest.mark.parametrize(
    "size", [2 * FRAMES, 2 * FRAMES + 1, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
)
def test_unknown_sizes_are_the_rest_of_the_file(sound, size):
    samples, path, content = sound
    path.write_bytes(state_size(content, size))
    found, note = read(path)
    assert len(found) == len(samples) and note == ""


@pytest.mark.parametrize(
    "rest", [CHUNK + b"\0", CHUNK, CHUNK + b"\0" + CHUNK, b"TAG" + bytes(125), b"\0", bytes(999)]
)
def test_chunks_tags_and_zeros_after_the_sound_are_no_sound(sound, rest):
    samples, path, content = sound
    path.write_bytes(content + rest)
    found, note = read(path)
    assert len(found) == len(samples) and note == ""


def test_a_size_that_wrapped_around_at_4_gib(sound):
    _, path, content = sound
    size = 5 << 30
    with open(path, "wb") as file:  # Sparse: it takes no room.
        file.write(state_size(content, size % 2**32)[:-1000])
        file.truncate(size + len(content) - 2 * FRAMES - 1000)
        file.seek(0, 2)
        file.write(content[-1000:])
    recording = recordings.probe_recording(path)
    assert recording.seconds == size / 2 / 8000
    assert recording.note == "its header says 536,870,912 frames, and 2,684,354,560 are there"


@pytest.mark.parametrize("name", ["x.wav", "x.w64", "x.rf64", "x.aiff", "x.au", "x.caf"])
def test_zeros_after_the_sound_cost_no_time(save, rng, name):
    container = {"x.w64": "W64", "x.rf64": "RF64"}.get(name)
    path = save(name, rng.standard_normal(FRAMES) / 10, format=container)
    with open(path, "r+b") as file:
        file.truncate(1 << 30)
    start = time.process_time()
    recording = recordings.probe_recording(path)
    assert time.process_time() - start < 0.5
    assert recording.seconds == 2 and recording.note == ""


@pytest.mark.parametrize("name", ["x.w64", "x.rf64", "x.aiff", "x.au", "x.caf"])
def test_other_containers_are_read_to_the_end(save, rng, name):
    samples = (rng.standard_normal(FRAMES) / 10).astype(np.float32)
    container = {"x.w64": "W64", "x.rf64": "RF64"}.get(name)
    path = save(name, samples, format=container)
    content = bytearray(path.read_bytes())
    sizes = {
        "x.w64": lambda: (content.index(b"data") + 16, "<Q", 1024),
        "x.rf64": lambda: (28, "<Q", 1000),
        "x.aiff": lambda: (content.index(b"SSND") + 4, ">I", 1008),
        "x.au": lambda: (8, ">I", 1000),
        "x.caf": lambda: (content.index(b"data") + 4, ">q", 1004),
    }
    place, layout, size = sizes[name]()
    struct.pack_into(layout, content, place, size)
    path.write_bytes(content)
    found, note = read(path)
    np.testing.assert_allclose(found, samples, atol=1e-4)
    assert note == "its header says 500 frames, and 16,000 are there"


def test_mp3_without_its_length_is_read_to_the_end(save, rng):
    noise = rng.standard_normal(40_000) * np.repeat([0.3, 0.001], 20_000)
    path = save("x.mp3", noise, bitrate_mode="VARIABLE", compression_level=0.5)
    content = path.read_bytes()
    assert read(path)[1] == ""
    second = content.index(content[:2], 4)
    path.write_bytes(content[second:])  # Its first frame has the length of the others.
    found, note = read(path)
    assert abs(len(found) - 40_000) < 3 * 1152
    path.write_bytes(content * 2)
    found, note = read(path)
    assert (
        len(found) > 79_000
        and note == f"its header says 40,000 frames, and {len(found):,} are there"
    )


def test_joined_ogg_files_are_noted(save, rng):
    paths = [save(name, rng.standard_normal(FRAMES) / 10) for name in ("x.ogg", "y.ogg")]
    assert read(paths[0])[1] == ""
    paths[0].write_bytes(b"".join(path.read_bytes() for path in paths))
    found, note = read(paths[0])
    assert len(found) == FRAMES and "joined" in note


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [1000, 4096, 40_000, 700_001])
def test_flac_is_read_to_its_end(save, rng, channels, frames):
    path = save("x.flac", rng.standard_normal((frames, channels)) / 10, 44_100)
    content, (found, note) = path.read_bytes(), read(path)
    assert len(found) == frames and note == ""
    for stated in (0, 500):
        path.write_bytes(flac.replace_total(content[:42], stated) + content[42:])
        assert flac.read_total(path.read_bytes()[:42]) == stated
        again, note = read(path)
        np.testing.assert_array_equal(again, found)
        assert note == (f"its header says 500 frames, and {frames:,} are there" if stated else "")


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("x.mp3", b"ID3\x03\0\0\0\0\x0f\x76" + bytes(2038), "has no sound that can be decoded"),
        ("x.mp3", b"<!DOCTYPE html><p>Not found", "a web page"),
        ("x.mp3", bytes(5000), "it begins with zeros"),
        ("x.m4a", b"\0\0\0\x20ftypM4A " + bytes(99), "MPEG-4.* convert it to WAV or FLAC"),
        ("x.raw", b"\x01\x02" * 999, "nothing in it can be decoded"),
    ],
)
def test_the_true_reason_is_given(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(recordings.Unreadable, match=reason) as caught:
        recordings.probe_recording(tmp_path / name)
    assert "does not exist" not in str(caught.value)


@pytest.mark.parametrize(
    "suffix", [".opus", ".oga", ".WAVE", ".aifc", ".w64", ".au", ".caf", ".sph"]
)
def test_other_suffixes_are_read(save, rng, suffix):
    containers = {".oga": "OGG", ".WAVE": "WAV", ".aifc": "AIFF", ".sph": "NIST"}
    path = save("x.wav", rng.standard_normal(FRAMES) / 10, 16_000)
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
    options = options or {"format": containers.get(suffix)}
    path = save("x" + suffix, rng.standard_normal(FRAMES) / 10, 16_000, **options)
    assert list(recordings.list_recordings(path.parent)) == sorted([path, path.with_name("x.wav")])
    assert len(read(path)[0]) == FRAMES


def test_channels_that_cancel_each_other_out_are_noted(save, rng):
    left = rng.standard_normal(FRAMES) / 10
    recording = recordings.probe_recording(
        save("x.wav", np.stack([left, -left], 1), subtype="FLOAT")
    )
    notes = []
    for channel in ("mean", "0"):
        list(recordings.stream_samples(recording, 8000, channel, notes.append))
    assert len(notes) == 1 and "cancel" in notes[0]
    recording = recordings.probe_recording(save("y.wav", np.stack([left, left], 1)))
    list(recordings.stream_samples(recording, 8000, report=notes.append))
    assert len(notes) == 1
