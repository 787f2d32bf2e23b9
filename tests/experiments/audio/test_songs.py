import numpy as np
import pytest
import scipy.io.wavfile

from experiments.audio import recordings, songs, spectrograms, windows


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in recordings.list_recordings(folder)
    }


def test_seed_decides_the_songs(tmp_path):
    size = {"classes": 3, "recordings": 2, "seconds": 1.0, "rate": 16000}
    first = contents(songs.write_songs(tmp_path / "a", **size))
    assert first == contents(songs.write_songs(tmp_path / "b", **size))
    assert sorted(first) == [
        f"{n}/{n}-00{i}.wav" for n in ("archer", "faller", "riser") for i in (1, 2)
    ]
    assert len(set(first.values())) == 6
    other = contents(songs.write_songs(tmp_path / "c", **size, seed=1))
    assert (
        other.keys() == first.keys()
        and other["riser/riser-001.wav"] != first["riser/riser-001.wav"]
    )


def test_equal_files_are_left_alone(tmp_path):
    size = {"classes": 1, "recordings": 1, "seconds": 1.0, "rate": 16000}
    (path,) = recordings.list_recordings(songs.write_songs(tmp_path, **size))
    before = path.stat().st_mtime_ns
    songs.write_songs(tmp_path, **size)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"damaged")
    songs.write_songs(tmp_path, **size)
    assert len(path.read_bytes()) > 32000


def test_length_and_loudness(tmp_path):
    for path in recordings.list_recordings(
        songs.write_songs(tmp_path, recordings=2, seconds=1.5, rate=16000)
    ):
        rate, samples = scipy.io.wavfile.read(path)
        assert rate == 16000 and len(samples) == 24000
        assert 1000 < np.abs(samples.astype(int)).max() <= 32767


def test_classes_can_be_told_apart(tmp_path, audio):
    pytest.importorskip("soundfile")
    pytest.importorskip("librosa")
    folder = songs.write_songs(tmp_path, classes=8, recordings=6, seconds=2.0)
    settings = audio(bands=32)
    pictures, labels = [], []
    for path in recordings.list_recordings(folder):
        blocks = recordings.stream_samples(recordings.probe_recording(path), 32000)
        window = next(windows.cut_grid(blocks, 32000, 2.0, 1.0))
        levels = spectrograms.compute_spectrogram(window.samples, settings).astype(np.float32)
        # Maximum loudness of each pitch: a simple description of the range of pitches.
        pictures.append(np.sort(levels, axis=1)[:, -20:].mean(axis=1))
        labels.append(path.parent.name)
    pictures, labels = np.array(pictures), np.array(labels)
    distance = np.linalg.norm(pictures[:, None] - pictures[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).mean() > 0.8


def test_day_has_times_in_its_names(tmp_path):
    folder = songs.write_day(tmp_path, recordings=24, seconds=1.0)
    names = sorted(path.name for path in recordings.list_recordings(folder))
    assert names[0] == "S4A00001_20200101_000000.wav"
    assert names[23] == "S4A00024_20200101_230000.wav"
    assert scipy.io.wavfile.read(folder / names[5])[1].shape == (22050,)


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"classes": 99}, {"rate": 8000}])
def test_invalid_arguments_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="must be"):
        songs.write_songs(tmp_path, **wrong)
