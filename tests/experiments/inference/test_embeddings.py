"""Embeddings: windows of recordings, labels of files, and means of indices."""

import numpy as np
import pytest
from finished_runs import config_with

from experiments.core.errors import UserError
from experiments.data.reading import File
from experiments.inference.embeddings import Clock, embed_pieces, label_files, read_pieces
from experiments.inference.indices import _average_groups
from experiments.inference.trained import Trained


@pytest.fixture
def trained():
    audio = {"sample_rate": 8000, "seconds": 0.5, "hop": 0.5, "n_fft": 64, "step": 100, "bands": 8}
    config = config_with("audio,smoke", **{f"audio.{name}": v for name, v in audio.items()})
    return Trained(config, "ab", (8, 41, 1), {})


def test_windows_of_recordings_become_pieces(trained, tmp_path, rng):
    soundfile = pytest.importorskip("soundfile")
    sound = rng.normal(0, 0.1, 12_000)
    sound[4000:8000] = 0
    soundfile.write(tmp_path / "a.wav", sound.astype(np.float32), 8000, subtype="FLOAT")
    (tmp_path / "b.wav").write_bytes(b"no sound")
    files = [File(tmp_path / name, name) for name in ("a.wav", "b.wav")]
    skipped, remarks, clock = [], [], Clock()
    pieces = list(
        read_pieces(trained, files, lambda *reason: skipped.append(reason), remarks.append, clock)
    )
    places = [(piece.file, piece.start, piece.end, piece.silent) for piece in pieces]
    assert places == [
        ("a.wav", 0.0, 0.5, False), ("a.wav", 0.5, 1.0, True), ("a.wav", 1.0, 1.5, False),
    ]  # fmt: skip
    assert all(piece.example["inputs"].shape == (8, 41, 1) for piece in pieces)
    assert [name for name, _ in skipped] == ["b.wav"] and not remarks and clock["spectrograms"] > 0


def test_flaws_that_show_at_the_end_of_a_recording_are_said(trained, tmp_path, rng):
    soundfile = pytest.importorskip("soundfile")
    sound = rng.normal(0, 0.1, 20_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([sound, -sound], 1), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.flac", sound, 8000)
    content = (tmp_path / "b.flac").read_bytes()
    (tmp_path / "b.flac").write_bytes(content[: len(content) * 2 // 3])
    files = [File(tmp_path / name, name) for name in ("a.wav", "b.flac")]
    remarks = []
    list(read_pieces(trained, files, lambda *reason: None, remarks.append, Clock()))
    assert (
        len(remarks) == 2 and "cancel each other" in remarks[0] and remarks[0].startswith("a.wav")
    )
    assert remarks[1].startswith("b.flac: truncated")


def test_no_pieces_have_no_codes():
    trained = Trained(config_with(), "ab", (8, 8, 1), {})
    assert embed_pieces(trained, [], 0, Clock()).codes.shape == (0, 0)


def test_labels_are_folders_periods_or_a_table(tmp_path):
    names = ["a/x_20240501_060000.wav", "b/y_20240501_130000.wav"]
    assert label_files("", names) == label_files("folder", names) == ["a", "b"]
    assert label_files("period", names) == ["dawn", "afternoon"]
    # For a single folder the time says more.
    assert label_files("", [name[2:] for name in names]) == ["dawn", "afternoon"]
    sheet = tmp_path / "labels.csv"
    sheet.write_text("file,label\na/x_20240501_060000.wav,wren\ny_20240501_130000.wav,robin\n")
    assert label_files(str(sheet), names) == ["wren", "robin"]
    assert label_files(str(sheet), [*names, "c.wav"])[2] == ""
    sheet.write_text("name,species\na,b\n")
    for source, message in (
        (str(sheet), "needs the columns"),
        (str(tmp_path / "none.csv"), "cannot be read"),
        ("species", "choose folder, period"),
    ):
        with pytest.raises(UserError, match=message):
            label_files(source, names)
    with pytest.raises(UserError, match="no file has a time"):
        label_files("period", ["x.wav"])


def test_the_mean_of_a_file_is_over_the_windows_that_have_an_index():
    nan = np.nan
    rows = np.array([[1.0, nan], [3.0, 4.0], [5.0, nan]])
    means = _average_groups(rows, np.array([0, 0, 2]), 3)
    np.testing.assert_array_equal(means, [[2, 4], [nan, nan], [5, nan]])
