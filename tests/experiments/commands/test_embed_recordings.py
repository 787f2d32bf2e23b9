"""Embedding recordings, and comparing the codes with acoustic indices and cepstra."""

import numpy as np
import pytest
from finished_runs import read_table, write_finished
from small_runs import change

from experiments.configs import soundscape_autoencoder
from experiments.inference.embed import embed
from experiments.load import load

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("maad")
pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("standard_promotion")]


@pytest.fixture
def coder(tmp_path):
    """The network of a finished autoencoder of windows of half a second."""
    audio = {"sample_rate": 8000, "seconds": 0.5, "hop": 0.5, "n_fft": 64, "step": 100}
    audio |= {"height": 16, "width": 16}
    settings = {f"audio.{name}": value for name, value in audio.items()}
    settings |= {"autoencoder.widths": (4, 3), "batch_size": 4}
    config = change(soundscape_autoencoder.get_config("songs,smoke"), settings)
    write_finished(tmp_path / "run", config, (), (16, 16, 3))
    return load(tmp_path / "run")


@pytest.fixture
def recordings(tmp_path, rng):
    """Recordings of low and of high tones, silent in the second half second; and a bad one."""
    root = tmp_path / "recordings"
    root.mkdir()
    time = np.arange(12_000) / 8000
    for index in range(8):
        hour, hertz = (2, 500) if index % 2 else (13, 2500)
        sound = np.sin(2 * np.pi * hertz * time * (1 + index / 100)) + rng.normal(0, 0.01, 12_000)
        sound[4000:8000] = 0
        name = f"site_20240501_{hour:02}{index:02}00.wav"
        soundfile.write(root / name, sound.astype(np.float32), 8000, subtype="FLOAT")
    (root / "site_20240501_000000.wav").write_bytes(b"no sound")
    (root / "notes.txt").write_text("not meant")
    return root


def test_recordings_are_compared_by_codes_indices_and_cepstra(coder, recordings, tmp_path):
    out = tmp_path / "out"
    assert embed(coder, [str(recordings)], out, compare=True) == (24, 1)
    expected = {"embeddings.npz", "embeddings.csv", "clusters.csv", "tsne.png", "day.png"}
    expected |= {"reconstructions.png", "skipped.csv", "indices.csv", "indices_per_file.csv"}
    expected |= {"indices.npz", "definitions.csv", "timing.csv", "compare.csv", "compare.png"}
    assert {path.name for path in out.iterdir()} == expected

    saved = np.load(out / "embeddings.npz")
    assert saved["start_s"].tolist() == [0, 0.5, 1] * 8 and saved["end_s"].max() == 1.5
    assert saved["silent"].tolist() == [False, True, False] * 8
    clusters = read_table(out / "clusters.csv")
    assert {row["label"] for row in clusters} == {"night", "afternoon"}
    assert [row["cluster"] == "" for row in clusters] == saved["silent"].tolist()

    rows = read_table(out / "indices.csv")
    assert len(rows) == 24 and [row["ACI"] == "" for row in rows] == saved["silent"].tolist()
    means = {row["file"]: row for row in read_table(out / "indices_per_file.csv")}
    first = [float(row["ACI"]) for row in rows if row["file"] == rows[0]["file"] and row["ACI"]]
    assert float(means[rows[0]["file"]]["ACI"]) == pytest.approx(np.mean(first), rel=1e-4)
    assert means[rows[0]["file"]]["windows"] == "2"
    assert np.load(out / "indices.npz")["spectral"].shape == (16, 2048)

    features = {row["features"]: row for row in read_table(out / "compare.csv")}
    assert list(features) == ["spectral indices", "alpha indices", "cepstra", "codes"]
    assert [int(row["size"]) for row in features.values()] == [2048, 60, 13 * 49, 48]
    # Low and high tones are easy to tell apart.
    assert float(features["cepstra"]["f_mean"]) > 0.9
    assert float(features["spectral indices"]["purity_mean"]) > 0.9
    assert all(float(row["seconds"]) > 0 for row in features.values())
    activities = {row["what"] for row in read_table(out / "timing.csv")}
    assert activities == {*list(features)[:3], "spectrograms", "network"}


def test_codes_go_into_a_database(coder, recordings, tmp_path):
    library = pytest.importorskip("perch_hoplite.db.sqlite_usearch_impl")
    folder = tmp_path / "database"
    embed(coder, [str(recordings)], tmp_path / "out", hoplite=folder)
    database = library.SQLiteUSearchDB.create(str(folder))
    saved = np.load(tmp_path / "out" / "embeddings.npz")
    heard = np.flatnonzero(~saved["silent"])
    assert database.count_embeddings() == len(heard) == 16
    assert database.count_each_label() == {}
    windows = database.get_all_windows()
    found = np.array([database.get_embedding(window.id) for window in windows])
    np.testing.assert_allclose(found, saved["codes"][heard], atol=2e-3)
    assert [window.offsets[0] for window in windows] == saved["start_s"][heard].tolist()
