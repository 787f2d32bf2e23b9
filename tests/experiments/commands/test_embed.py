"""What a finished run makes of files: tables and arrays of codes, clusters, figures, and what is left out."""

import csv
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished
from PIL import Image

from experiments import embed as command
from experiments.configs import soundscape_autoencoder
from experiments.core.errors import UserError
from experiments.data import pictures
from experiments.embed import Drawn, embed
from experiments.inference.embed_labels import labels_of
from experiments.inference.indices import _mean_of_each
from experiments.inference.trained import into_head
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion", "compiled_once")

ROOT = Path(command.__file__).parents[1]
TABLES = {"embeddings.npz", "embeddings.csv", "clusters.csv", "tsne.png"}


def autoencoder(folder, shape, argument, **changes):
    config = soundscape_autoencoder.get_config(argument)
    with config.unlocked():
        settings = {"autoencoder.widths": (4, 3), "batch_size": 4, **changes}
        config.update_from_flattened_dict(settings)
    write_finished(folder, config, (), shape)
    return folder


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory):
    """Finished runs on pictures of 8 by 8: an autoencoder and a classifier."""
    folder = tmp_path_factory.mktemp("runs")
    with jax.numpy_dtype_promotion("standard"):
        coder = autoencoder(folder / "coder", (8, 8, 3), "folder,smoke", image_size=8)
        config = config_with("folder,smoke", image_size=8)
        write_finished(folder / "classifier", config, "abc", (8, 8, 3))
    return {"coder": coder, "classifier": folder / "classifier"}


@pytest.fixture
def album(tmp_path, rng):
    """Six pictures in folders of two classes, made at different times, and a bad one."""
    root = tmp_path / "album"
    for index in range(6):
        path = root / "ab"[index % 2] / f"cam_20240501_{4 * index:02}0000.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    (root / "a" / "bad.png").write_bytes(b"no picture")
    return root


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_become_codes_clusters_and_figures(of_pictures, album, tmp_path, capsys):
    out = tmp_path / "out"
    assert embed(str(of_pictures["coder"]), [str(album)], out) == (6, 1)
    names = {path.name for path in out.iterdir()}
    assert names == TABLES | {"day.png", "reconstructions.png", "skipped.csv"}

    saved = np.load(out / "embeddings.npz")
    files = sorted(p.relative_to(album).as_posix() for p in album.rglob("cam*"))
    assert saved["file"].tolist() == files and saved["codes"].dtype == np.float32
    # The codes are the network's, of what it would see of the files.
    network = load(of_pictures["coder"])
    expected = network([pictures.decode_picture(album / name) for name in files])
    np.testing.assert_allclose(saved["codes"], expected, rtol=1e-5, atol=1e-5)

    rows = table(out / "embeddings.csv")
    assert list(rows[0]) == ["file", *(f"code_{number}" for number in range(12))]
    said = [[float(row[f"code_{n}"]) for n in range(12)] for row in rows]
    np.testing.assert_allclose(said, saved["codes"], rtol=1e-4)
    rows = table(out / "clusters.csv")
    assert [(row["file"], row["label"]) for row in rows] == [(f, f[0]) for f in files]
    assert {row["cluster"] for row in rows} == {"0", "1"}  # as many as there are folders
    assert [row["file"] for row in table(out / "skipped.csv")] == ["a/bad.png"]
    assert "6" in capsys.readouterr().out


def test_of_a_classifier_it_is_what_comes_into_its_head(of_pictures, album, tmp_path):
    out = tmp_path / "out"
    embed(str(of_pictures["classifier"]), [str(album)], out, clusters=3, quiet=True)
    assert not (out / "reconstructions.png").exists()
    codes = np.load(out / "embeddings.npz")["codes"]
    network = load(of_pictures["classifier"])
    files = sorted(album.rglob("cam*"))[:4]  # a batch
    examples = [network.prepare(pictures.decode_picture(path)) for path in files]
    probabilities, _ = network.answers_and_features(examples)
    head = network.variables["params"]["head"]
    logits = codes[:4] @ head["kernel"] + head["bias"]
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, probabilities, rtol=1e-4, atol=1e-6)
    assert {row["cluster"] for row in table(out / "clusters.csv")} == set("012")


def test_a_network_without_a_head_is_said_to_have_none(of_pictures):
    network = load(of_pictures["coder"])
    with pytest.raises(ValueError, match="no module named head"):
        jax.eval_shape(
            lambda x: into_head(network.model.apply, dict(network.variables), x),
            jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32),
        )


@pytest.fixture(scope="module")
def of_sounds(tmp_path_factory):
    """A finished autoencoder of windows of half a second."""
    pytest.importorskip("soundfile")
    settings = {"sample_rate": 8000, "seconds": 0.5, "hop": 0.5, "n_fft": 64, "step": 100}
    changes = {f"audio.{name}": value for name, value in settings.items()}
    changes |= {"audio.height": 16, "audio.width": 16}
    folder = tmp_path_factory.mktemp("runs") / "sounds"
    with jax.numpy_dtype_promotion("standard"):
        return autoencoder(folder, (16, 16, 3), "songs,smoke", **changes)


@pytest.fixture
def recordings(tmp_path, rng):
    """Recordings of low and of high tones, in which the second half second is silent; and a bad one."""
    import soundfile

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


def test_recordings_are_compared_by_codes_indices_and_cepstra(of_sounds, recordings, tmp_path):
    pytest.importorskip("maad")
    out = tmp_path / "out"
    assert embed(str(of_sounds), [str(recordings)], out, compare=True, quiet=True) == (24, 1)
    compared = {"indices.csv", "indices_per_file.csv", "indices.npz", "definitions.csv"}
    compared |= {"timing.csv", "compare.csv", "compare.png"}
    expected = TABLES | compared | {"day.png", "reconstructions.png", "skipped.csv"}
    assert {path.name for path in out.iterdir()} == expected

    saved = np.load(out / "embeddings.npz")
    assert saved["start_s"].tolist() == [0, 0.5, 1] * 8 and saved["end_s"].max() == 1.5
    assert saved["silent"].tolist() == [False, True, False] * 8
    clusters = table(out / "clusters.csv")
    assert {row["label"] for row in clusters} == {"night", "afternoon"}
    assert [row["cluster"] == "" for row in clusters] == saved["silent"].tolist()

    rows = table(out / "indices.csv")
    assert len(rows) == 24 and [row["ACI"] == "" for row in rows] == saved["silent"].tolist()
    means = {row["file"]: row for row in table(out / "indices_per_file.csv")}
    first = [float(row["ACI"]) for row in rows if row["file"] == rows[0]["file"] and row["ACI"]]
    assert float(means[rows[0]["file"]]["ACI"]) == pytest.approx(np.mean(first), rel=1e-4)
    assert means[rows[0]["file"]]["windows"] == "2"
    assert np.load(out / "indices.npz")["spectral"].shape == (16, 2048)

    found = {row["features"]: row for row in table(out / "compare.csv")}
    assert list(found) == ["spectral indices", "alpha indices", "cepstra", "codes"]
    assert [int(row["size"]) for row in found.values()] == [2048, 60, 13 * 49, 48]
    # Low and high tones are easily told apart.
    assert float(found["cepstra"]["f_mean"]) > 0.9 < float(found["spectral indices"]["purity_mean"])
    assert all(float(row["seconds"]) > 0 for row in found.values())
    what = {row["what"] for row in table(out / "timing.csv")}
    assert what == {*list(found)[:3], "spectrograms", "network"}


def test_the_mean_of_a_file_is_over_the_windows_that_have_an_index():
    nan = np.nan
    rows = np.array([[1.0, nan], [3.0, 4.0], [5.0, nan]])
    means = _mean_of_each(rows, np.array([0, 0, 2]), 3)
    np.testing.assert_array_equal(means, [[2, 4], [nan, nan], [5, nan]])


def test_labels_are_folders_periods_or_a_table(tmp_path):
    names = ["a/x_20240501_060000.wav", "b/y_20240501_130000.wav"]
    assert labels_of("", names) == labels_of("folder", names) == ["a", "b"]
    assert labels_of("period", names) == ["dawn", "afternoon"]
    # Of one folder alone the time says more.
    assert labels_of("", [name[2:] for name in names]) == ["dawn", "afternoon"]
    sheet = tmp_path / "labels.csv"
    sheet.write_text("file,label\na/x_20240501_060000.wav,wren\ny_20240501_130000.wav,robin\n")
    assert labels_of(str(sheet), names) == ["wren", "robin"]
    assert labels_of(str(sheet), [*names, "c.wav"])[2] == ""
    sheet.write_text("name,species\na,b\n")
    for which, says in (
        (str(sheet), "needs the columns file and label"),
        (str(tmp_path / "none.csv"), "cannot be read"),
        ("species", "write folder, period, or give a file"),
    ):
        with pytest.raises(UserError, match=says):
            labels_of(which, names)
    with pytest.raises(UserError, match="no file's name has a time"):
        labels_of("period", ["x.wav"])


@pytest.mark.parametrize(
    ("paths", "options", "says"),
    [
        ([], {}, "Give files or folders"),
        (["nowhere"], {}, "There is no file or folder nowhere"),
        (["album"], {"clusters": 1}, "--clusters=1: choose 2 or more"),
        (["album"], {"batch_size": -1}, "--batch_size=-1"),
        (["album"], {"compare": True}, "--compare is for recordings"),
        (["album/a/bad.png"], {}, r"1 of 1 files could not be used \(bad\.png: not a picture"),
    ],
)
def test_what_cannot_be_embedded_is_said(
    of_pictures, album, tmp_path, monkeypatch, paths, options, says
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        embed(str(of_pictures["coder"]), paths, "out", quiet=True, **options)


def test_what_is_there_is_replaced_only_where_that_is_asked_for(of_pictures, album, tmp_path):
    run, out = str(of_pictures["coder"]), tmp_path / "out"
    (out / "inside").mkdir(parents=True)
    (out / "embeddings.npz").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"embeddings\.npz is there already: .* --overwrite"):
        embed(run, [str(album)], out, quiet=True)
    assert (out / "embeddings.npz").read_bytes() == b"mine"
    embed(run, [str(album / "a")], out, overwrite=True, quiet=True)
    assert len(np.load(out / "embeddings.npz")["codes"]) == 3


def test_a_few_of_a_stream_are_drawn_with_equal_chances(monkeypatch):
    counts = np.zeros(6)
    for seed in range(300):
        drawn = Drawn(2)
        drawn._rng = np.random.default_rng(seed)
        for piece in range(6):
            drawn.see(piece)
        counts[drawn.kept] += 1
    assert counts.sum() == 600 and counts.min() > 70


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "experiments.embed", "nowhere", "x.wav"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2 and result.stderr.startswith(
        "error: nowhere holds no finished run"
    )
