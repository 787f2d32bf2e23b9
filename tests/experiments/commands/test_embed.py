"""Embedding files: tables and arrays of codes, clusters, figures, and what is left out."""

import jax
import numpy as np
import pytest
from finished_runs import read_table, write_finished
from PIL import Image
from small_runs import change

from experiments import embed as command
from experiments.configs import soundscape_autoencoder
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.data import pictures
from experiments.inference import embed as inference
from experiments.inference.embed import embed
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion")

TABLES = {"embeddings.npz", "embeddings.csv", "clusters.csv", "tsne.png"}


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    """The network of a finished autoencoder of pictures of 8 by 8."""
    folder = tmp_path_factory.mktemp("runs") / "coder"
    settings = {"autoencoder.widths": (4, 3), "batch_size": 4, "image_size": 8}
    config = change(soundscape_autoencoder.get_config("folder,smoke"), settings)
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config, (), (8, 8, 3))
        return load(folder)


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


def test_pictures_become_codes_clusters_and_figures(coder, album, tmp_path):
    out = tmp_path / "out"
    words = ["embed", str(coder.source), str(album), f"--out={out}"]
    assert cli.run(command.main, words, command.__doc__) == 0
    names = {path.name for path in out.iterdir()}
    assert names == TABLES | {"day.png", "reconstructions.png", "skipped.csv"}

    saved = np.load(out / "embeddings.npz")
    files = sorted(p.relative_to(album).as_posix() for p in album.rglob("cam*"))
    assert saved["file"].tolist() == files and saved["codes"].dtype == np.float32
    expected = coder([pictures.decode_picture(album / name) for name in files])
    np.testing.assert_allclose(saved["codes"], expected, rtol=1e-5, atol=1e-5)

    rows = read_table(out / "embeddings.csv")
    assert list(rows[0]) == ["file", *(f"code_{number}" for number in range(12))]
    written = [[float(row[f"code_{n}"]) for n in range(12)] for row in rows]
    np.testing.assert_allclose(written, saved["codes"], rtol=1e-4)
    rows = read_table(out / "clusters.csv")
    assert [(row["file"], row["label"]) for row in rows] == [(f, f[0]) for f in files]
    assert {row["cluster"] for row in rows} == {"0", "1"}  # the number of folders
    assert [row["file"] for row in read_table(out / "skipped.csv")] == ["a/bad.png"]


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ([], {}, "Nothing to read"),
        (["nowhere"], {}, "no file or folder nowhere"),
        (["album"], {"clusters": 1}, "--clusters=1"),
        (["album"], {"batch_size": -1}, "--batch_size=-1"),
        (["album"], {"compare": True}, "--compare is for recordings"),
        (["album"], {"labels": "lables.csv"}, r"lables\.csv cannot be read"),
        (["album"], {"labels": "folders"}, "choose folder, period"),
        (["album/a/bad.png"], {}, r"1 of 1 file .*bad\.png: not a picture"),
    ],
)
def test_mistakes_are_explained(coder, album, tmp_path, monkeypatch, paths, options, message):
    monkeypatch.chdir(tmp_path)
    if "labels" in options:
        monkeypatch.setattr(inference, "embed_pieces", None)  # before the work
    with pytest.raises(UserError, match=message):
        embed(coder, paths, "out", **options)


def test_output_is_replaced_only_with_overwrite(coder, album, tmp_path):
    out = tmp_path / "out"
    (out / "inside").mkdir(parents=True)
    (out / "embeddings.npz").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"embeddings\.npz exists.*--overwrite"):
        embed(coder, [str(album)], out)
    assert (out / "embeddings.npz").read_bytes() == b"mine"
    embed(coder, [str(album / "a")], out, overwrite=True)
    assert len(np.load(out / "embeddings.npz")["codes"]) == 3


def test_no_other_output_is_replaced_either(coder, album, tmp_path):
    for name in ("clusters.csv", "tsne.png", "compare.csv"):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_bytes(b"mine")
        with pytest.raises(UserError, match=f"{name} exists.*--overwrite"):
            embed(coder, [str(album)], out)
        assert (out / name).read_bytes() == b"mine"
