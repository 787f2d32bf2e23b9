"""Predicting pictures and series: the tables, what is left out, and what is replaced."""

from pathlib import Path

import jax
import numpy as np
import pytest
from finished_runs import config_with, read_table, write_finished
from PIL import Image

from experiments import predict as command
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.data import pictures
from experiments.inference.predict import predict
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The network of a finished run on pictures of 8 by 8."""
    folder = tmp_path_factory.mktemp("runs") / "pictures"
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config_with("folder,smoke", image_size=8), "abc", (8, 8, 3))
        return load(folder)


@pytest.fixture
def album(tmp_path, rng):
    """Seven pictures of any sizes and modes in folders, two bad files between them, and a hidden one."""
    root = tmp_path / "album"
    for index in range(7):
        path = root / ("ab"[index % 2]) / f"{index}.{'png' if index % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 256, (8 + 3 * index, 10, 3), np.uint8)
        Image.fromarray(values).convert("L" if index == 4 else "RGB").save(path)
    (root / "a" / "1.png").write_bytes((root / "b" / "1.png").read_bytes()[:60])
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden").write_text("not meant")
    return root


def test_a_folder_of_pictures_becomes_a_table(trained, album, tmp_path, capsys):
    out = tmp_path / "out" / "p.csv"
    words = ["predict", str(trained.source), str(album), f"--out={out}", "--top=2"]
    assert cli.run(command.main, words, command.__doc__) == 0

    rows = read_table(out)
    assert list(rows[0]) == ["file", "rank", "label", "probability"]
    good = sorted(p for p in album.rglob("[0-9].*") if p != album / "a" / "1.png")
    assert [row["file"] for row in rows] == [str(path) for path in good for _ in range(2)]
    assert [row["rank"] for row in rows] == ["1", "2"] * 7
    expected = trained([pictures.decode_picture(path) for path in good])
    for index, probabilities in enumerate(expected):
        two = rows[2 * index : 2 * index + 2]
        order = np.argsort(-probabilities)[:2]
        assert [row["label"] for row in two] == ["abc"[number] for number in order]
        written = [float(row["probability"]) for row in two]
        np.testing.assert_allclose(written, probabilities[order], atol=2e-6)

    bad = read_table(tmp_path / "out" / "p.skipped.csv")
    assert [row["file"] for row in bad] == [str(album / "notes.txt"), str(album / "a" / "1.png")]
    assert all(row["reason"] for row in bad)
    assert f"2, listed in {tmp_path / 'out' / 'p.skipped.csv'}" in capsys.readouterr().out


def test_a_table_is_replaced_only_with_overwrite(trained, album, tmp_path):
    out = tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"p\.csv exists.*--overwrite"):
        predict(trained, [str(album)], out)
    assert out.read_text() == "mine"
    # A table inside the folder that is read is not read itself.
    inside = album / "p.csv"
    for _ in range(2):
        predict(trained, [str(album)], inside, top=99, overwrite=True)
    assert len(read_table(inside)) == 3 * 7
    assert len(read_table(album / "p.skipped.csv")) == 2


def test_a_folder_with_the_name_of_the_table_is_read(trained, album, tmp_path):
    out = album / "a.csv"
    assert predict(trained, [str(album)], out) == (7, 2)
    assert any(str(album / "a") in row["file"] for row in read_table(out))


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ([], {}, "Nothing to read"),
        (["nowhere"], {}, "no file or folder nowhere"),
        (["."], {}, "no file in ."),
        (["notes.txt"], {}, r"None of 1 file .*p\.skipped\.csv"),
        (["notes.txt"], {"top": 0}, "--top=0"),
        (["notes.txt"], {"batch_size": -1}, "--batch_size=-1"),
        (["notes.txt"], {"out": "p.txt"}, "ends in .csv"),
        (["notes.txt"], {"threshold": 0.5}, "--threshold is for runs on recordings"),
    ],
)
def test_mistakes_are_explained(trained, tmp_path, monkeypatch, paths, options, message):
    monkeypatch.chdir(tmp_path)
    if "notes.txt" in paths:
        Path("notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=message):
        predict(trained, paths, **{"out": "p.csv", **options})
    assert not Path("p.csv").exists()


def test_each_line_of_a_file_of_series_is_an_example(tmp_path, rng):
    config = config_with("ucr,smoke,name=Toy", **{"model.network": "net1", "series.features": 2})
    write_finished(tmp_path / "run", config, ["one", "two"], (24, 1))
    trained = load(tmp_path / "run")
    series = rng.normal(size=(5, 24))
    table = np.column_stack([np.zeros(5), series])
    np.savetxt(tmp_path / "New.tsv", table, delimiter="\t", fmt="%.6f")
    with open(tmp_path / "New.tsv", "a") as file:
        file.write("\t".join(["0", *["NaN"] * 24]) + "\n")
    # Without labels, which training needs, and with a series that is too long.
    lines = [",".join(map(str, series[0])), ",".join(["1"] * 30)]
    header = "@problemName New\n@classLabel false\n@data\n"
    (tmp_path / "unlabelled.ts").write_text(header + "\n".join(lines) + "\n")
    (tmp_path / "words.txt").write_text("these are words\n")

    files = [str(tmp_path / name) for name in ("New.tsv", "unlabelled.ts", "words.txt")]
    assert predict(trained, files, tmp_path / "p.csv", top=1) == (6, 3)
    rows = read_table(tmp_path / "p.csv")
    assert list(rows[0]) == ["file", "line", "rank", "label", "probability"]
    assert [row["line"] for row in rows] == ["1", "2", "3", "4", "5", "4"]
    probabilities = trained(series)
    for row, expected in zip(rows, [*probabilities, probabilities[0]], strict=True):
        assert row["label"] == ("one", "two")[expected.argmax()]
        assert float(row["probability"]) == pytest.approx(expected.max(), abs=1e-4)
    bad = [(row["line"], row["reason"]) for row in read_table(tmp_path / "p.skipped.csv")]
    assert bad[0] == ("6", "no values")
    assert bad[1] == ("5", "30 values, more than the 24 of the longest in training")
    assert bad[2][0] == "" and "not a number" in bad[2][1]
