import itertools
import os
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from experiments.audio import recordings
from experiments.core.errors import UserError

soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")


def whole(path, rate=8000, channel="mean"):
    """All samples, and the notes that come with reading them."""
    notes = []
    blocks = list(
        recordings.stream_samples(recordings.probe_recording(path), rate, channel, notes.append)
    )
    assert all(block.dtype == np.float32 and len(block) for block in blocks)
    return np.concatenate(blocks), notes


def noise(rng, seconds=2.0, rate=8000):
    return 0.1 * rng.standard_normal(round(seconds * rate)).astype(np.float32)


def cut(path, share):
    """Takes the end away."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def test_list_recordings(tmp_path):
    names = ["a/x.WAV", "a/y.Flac", "b.ogg", "c.mp3", "d.AIFF", "e.aif"]
    for name in [*names, "notes.txt", ".hidden.wav", ".folder/f.wav", "._x.wav", "wav"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in recordings.list_recordings(tmp_path)]
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize(
    "name, options, tolerance",
    [
        ("x.wav", {"subtype": "PCM_16"}, 1e-4),
        ("x.wav", {"subtype": "PCM_U8"}, 1e-2),
        ("x.wav", {"subtype": "FLOAT"}, 0),
        ("x.flac", {}, 1e-4),
        ("x.aiff", {}, 1e-4),
        ("x.ogg", {}, 0.2),
        ("x.mp3", {}, 0.2),
        ("x.wav", {"format": "RF64"}, 1e-4),
    ],
)
def test_stream_gives_the_samples_in_blocks(save, rng, name, options, tolerance):
    samples = noise(rng, seconds=3.1)
    path = save(name, samples, **options)
    recording = recordings.probe_recording(path, "folder/x")
    assert (recording.name, recording.rate, recording.channels) == ("folder/x", 8000, 1)
    assert recording.seconds == pytest.approx(3.1, abs=0.1) and recording.note == ""
    read, notes = whole(path)
    assert not notes and abs(len(read) - len(samples)) < 1200
    if tolerance < 0.2:
        np.testing.assert_allclose(read, samples, atol=tolerance)
    else:
        assert read.std() == pytest.approx(samples.std(), rel=0.2)


@pytest.mark.parametrize("lost", [0, 1, 50])
def test_mp3_inside_wav(save, rng, lost):
    mp3 = save("x.mp3", noise(rng, seconds=8.0)).read_bytes()
    mp3 = mp3[: len(mp3) - lost * 144]
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 8000, 2000, 1, 0, 12, 1, 2, 144, 1, 0)
    chunks = [(b"fmt ", form), (b"fact", struct.pack("<I", 64000)), (b"data", mp3)]
    content = b"WAVE" + b"".join(n + struct.pack("<I", len(c)) + c for n, c in chunks)
    path = save("x.wav", noise(rng))
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    read, notes = whole(path)
    assert soundfile.info(path).subtype == "MPEG_LAYER_III"
    assert len(read) == 64000 if lost == 0 else 20_000 < len(read) < 64000
    assert notes == ([f"truncated: {len(read):,} of 64,000 frames"] if lost == 50 else [])


def test_channels(save):
    path = save("x.wav", np.array([[0.5, 0.25], [-0.5, 0.25]] * 50))
    assert whole(path)[0][:2] == pytest.approx([0.375, -0.125])
    assert whole(path, channel="0")[0][:2] == pytest.approx([0.5, -0.5])
    assert whole(path, channel="1")[0][:2] == pytest.approx([0.25, 0.25])
    with pytest.raises(ValueError, match="no channel 2: it has 2"):
        whole(path, channel="2")
    with pytest.raises(UserError, match=r"config\.audio\.channel=left"):
        whole(path, channel="left")


@pytest.mark.parametrize("rate", [8012, 11025, 44100, 48000])
def test_resampling_in_blocks_equals_resampling_at_once(save, rng, rate):
    samples = noise(rng, seconds=1.3, rate=rate)
    read, _ = whole(save("x.wav", samples, rate, subtype="FLOAT"), rate=32000)
    expected = soxr.resample(samples - samples[0], rate, 32000) + samples[0]
    assert len(read) == round(len(samples) * 32000 / rate)
    np.testing.assert_allclose(read, expected, atol=1e-6)


def test_resampling_keeps_a_constant(save):
    read, _ = whole(save("x.wav", np.full(9000, 0.3), rate=11025), rate=32000)
    assert (read == read[0]).all()


def test_memory_does_not_grow_with_the_length(save, rng):
    def most(seconds):
        path = save(f"{seconds}.wav", noise(rng, seconds))
        recording = recordings.probe_recording(path)
        tracemalloc.start()
        for _ in recordings.stream_samples(recording, 11025):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    most(1)
    assert most(200) < most(20) + 50_000


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "the file is empty"),
        (b"These are not sounds.\n" * 50, "not a sound file that can be read: format not recog"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "not a sound file that can be read"),
        (b"RIFF" + bytes(2000), "not a sound file that can be read"),
        (b"fLaC" + bytes(200), "not a sound file that can be read"),
        (b"OggS" + bytes(200), "not a sound file that can be read"),
        (b"ID3" + bytes(200), "not a sound file that can be read"),
    ],
)
def test_other_files_have_a_reason(tmp_path, content, reason):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        recordings.probe_recording(path)
    assert str(tmp_path) not in str(caught.value) and not str(caught.value).endswith(".")


def test_folders_and_pipes_have_a_reason(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ValueError, match="not a regular file"):
        recordings.probe_recording(tmp_path / "folder.wav")
    with pytest.raises(ValueError, match="cannot be opened: No such file"):
        recordings.probe_recording(tmp_path / "missing.wav")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
        with pytest.raises(ValueError, match="not a regular file"):
            recordings.probe_recording(tmp_path / "pipe.wav")


@pytest.mark.parametrize("name", ["x.wav", "x.aiff"])
def test_truncated_files_are_noted(save, rng, name):
    samples = noise(rng)
    path = cut(save(name, samples), 0.5)
    recording = recordings.probe_recording(path)
    read, _ = whole(path)
    assert 7900 < len(read) < 8000
    assert recording.note == f"truncated: {len(read):,} of 16,000 frames"
    assert recording.seconds == len(read) / 8000
    np.testing.assert_allclose(read, samples[: len(read)], atol=1e-4)


def test_unknown_sizes_are_no_truncation(save, rng):
    path = save("x.wav", noise(rng))
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", len(content) - 8 + 4)
    path.write_bytes(content)
    assert recordings.probe_recording(path).note == ""
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert recordings.probe_recording(path).note == "" and len(whole(path)[0]) == 16000


@pytest.mark.parametrize("share", [0.3, 0.44, 0.83])
def test_truncated_flac(save, rng, share):
    samples = noise(rng, seconds=8.0)
    path = cut(save("x.flac", samples), share)
    read, notes = whole(path)
    assert (share - 0.15) * len(samples) < len(read) <= share * len(samples)
    assert notes == [f"truncated: {len(read):,} of 64,000 frames"]
    np.testing.assert_allclose(read, samples[: len(read)], atol=1e-4)


def test_empty_flac_has_a_reason(save, rng):
    path = cut(save("x.flac", noise(rng, seconds=8.0)), 0.01)
    with pytest.raises(ValueError, match="nothing can be read"):
        whole(path)


def test_truncated_ogg(save, rng):
    path = save("x.ogg", noise(rng, seconds=60.0))
    assert recordings.probe_recording(path).note == ""
    cut(path, 0.7)
    read, _ = whole(path)
    assert 0.4 * 480_000 < len(read) < 0.75 * 480_000
    assert recordings.probe_recording(path).note == "truncated: its last page is missing"


def test_truncated_mp3(save, rng):
    read, notes = whole(cut(save("x.mp3", noise(rng, seconds=8.0)), 0.5))
    assert 20_000 < len(read) < 40_000
    assert notes == [f"truncated: {len(read):,} of 64,000 frames"]


def test_absurd_frame_count_has_a_reason(save, rng):
    path = save("x.flac", noise(rng))
    content = bytearray(path.read_bytes())
    # The last 36 bits of these are the number of samples; 0 is for unknown, and is read as 2^63 - 1.
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
    path.write_bytes(content[: content.index(b"\xff\xf8")] + bytes(9000))  # No frame has a number.
    with pytest.raises(ValueError, match="its header says 9,223,372,036,854,775,807 frames"):
        recordings.probe_recording(path)


def test_no_frames_has_a_reason(save):
    with pytest.raises(ValueError, match="no frames"):
        recordings.probe_recording(save("x.wav", np.zeros(0)))


@pytest.mark.parametrize(
    "bad, rate", list(itertools.product([np.nan, np.inf, -np.inf], [8000, 16000]))
)
def test_nonfinite_samples_have_a_reason(save, rng, bad, rate):
    samples = noise(rng)
    samples[9000] = bad
    path = save("x.wav", samples, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"^nonfinite$"):
        whole(path, rate=rate)


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_name_that_is_not_utf8(save, rng):
    path = save("x.wav", noise(rng))
    odd = path.with_name(os.fsdecode(b"caf\xe9.wav"))
    try:
        path.rename(odd)
    except OSError:
        pytest.skip("this file system takes text only")
    assert len(whole(odd)[0]) == 16000
