"""What a finished run says of files: the tables, what is left out, and how little is held at once."""

import csv
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished
from PIL import Image

from experiments import load as loading
from experiments.core.errors import UserError
from experiments.data import pictures
from experiments.figures.style import paint_mask
from experiments.inference import files as predict_files
from experiments.load import load
from experiments.predict import predict

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(loading.__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on pictures of 8 by 8."""
    folder = tmp_path_factory.mktemp("runs") / "pictures"
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config_with("folder,smoke", image_size=8), "abc", (8, 8, 3))
    return folder


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


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_pictures_becomes_a_row_for_each_picture_and_rank(run, album, tmp_path, capsys):
    out = tmp_path / "out" / "p.csv"
    assert predict(run, [str(album)], out, top=2) == (7, 2)

    rows = table(out)
    assert list(rows[0]) == ["file", "rank", "label", "probability"]
    good = sorted(p for p in album.rglob("[0-9].*") if p != album / "a" / "1.png")
    assert [row["file"] for row in rows] == [str(path) for path in good for _ in range(2)]
    assert [row["rank"] for row in rows] == ["1", "2"] * 7
    expected = load(run)([pictures.decode_picture(path) for path in good])
    for index, probabilities in enumerate(expected):
        two = rows[2 * index : 2 * index + 2]
        order = np.argsort(-probabilities)[:2]
        assert [row["label"] for row in two] == ["abc"[number] for number in order]
        said = [float(row["probability"]) for row in two]
        np.testing.assert_allclose(said, probabilities[order], atol=2e-6)

    bad = table(tmp_path / "out" / "p.skipped.csv")
    assert [row["file"] for row in bad] == [str(album / "notes.txt"), str(album / "a" / "1.png")]
    assert bad[0]["reason"] == "not a picture that Pillow can read" and bad[1]["reason"]
    said = capsys.readouterr().out
    assert "7" in said and f"2, listed in {tmp_path / 'out' / 'p.skipped.csv'}" in said


def test_an_earlier_table_is_replaced_only_where_that_is_asked_for(run, album, tmp_path):
    out = tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"p\.csv is there already: .* give --overwrite"):
        predict(run, [str(album)], out)
    assert out.read_text() == "mine"
    # The network knows three classes; written into the folder that is read, it is not read itself.
    inside = album / "p.csv"
    for _ in range(2):
        predict(run, [str(album)], inside, top=99, overwrite=True, quiet=True)
    assert len(table(inside)) == 3 * 7
    assert len(table(album / "p.skipped.csv")) == 2


@pytest.mark.parametrize(
    ("paths", "options", "says"),
    [
        ([], {}, "Give files or folders"),
        (["nowhere"], {}, "There is no file or folder nowhere"),
        (["."], {}, "There is no file in ."),
        (["notes.txt"], {}, r"None of 1 files could be used; .*p\.skipped\.csv says why"),
        (["notes.txt"], {"top": 0}, "--top=0: choose 1 or more"),
        (["notes.txt"], {"batch_size": -1}, "--batch_size=-1: choose 1 or more"),
        (["notes.txt"], {"out": "p.txt"}, "ends in .csv"),
    ],
)
def test_what_cannot_be_done_is_said(run, tmp_path, monkeypatch, paths, options, says):
    monkeypatch.chdir(tmp_path)
    if "notes.txt" in paths:
        Path("notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=says):
        predict(run, paths, **{"out": "p.csv", **options})
    assert not Path("p.csv").exists()


def test_the_command_ends_with_2_where_nothing_could_be_predicted(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    command = [sys.executable, "-m", "experiments.predict", str(run), str(tmp_path / "notes.txt")]
    command.append(f"--out={tmp_path / 'p.csv'}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2 and done.stderr.startswith("error: None of 1 files could be used;")
    assert "Traceback" not in done.stderr


def test_any_number_of_files_is_gone_through_with_few_in_hand(run, monkeypatch):
    trained = load(run)
    opened, said = [], []

    def counted(path, channels):
        opened.append(path)
        return np.full((8, 8, channels), len(opened) % 256, np.uint8)

    monkeypatch.setattr(pictures, "decode", counted)
    endless = (predict_files.File(Path(f"{n}.png"), "") for n in iter(int, 1))
    items = ((item, item.example) for item in predict_files.items(trained, endless))
    for _ in trained.answers(items, batch_size=4):
        said.append(None)
        # The batch, and what the threads are ahead.
        assert len(opened) - len(said) <= 4 + predict_files.THREADS + 1
        if len(said) == 200:
            break
    assert trained._compiled._cache_size() == 1


def test_files_of_the_same_name_from_several_places_stay_apart(tmp_path):
    for place in ("x/in", "y/in"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").touch()
    words = ["x/in", "y/in", "x/in/1.png", "y/in/1.png"]
    found = list(predict_files.given([str(tmp_path / word) for word in words]))
    assert [file.name for file in found] == ["in/1.png", "in-2/1.png", "1.png", "1-2.png"]
    assert [file.name for file in predict_files.given([str(tmp_path / "x")])] == ["in/1.png"]


def test_each_line_of_a_file_of_series_is_an_example(tmp_path, rng):
    config = config_with("ucr,smoke,name=Toy", **{"model.network": "net1", "series.features": 2})
    write_finished(tmp_path / "run", config, ["one", "two"], (24, 1))
    series = rng.normal(size=(5, 24))
    table_of = np.column_stack([np.zeros(5), series])
    np.savetxt(tmp_path / "New.tsv", table_of, delimiter="\t", fmt="%.6f")
    with open(tmp_path / "New.tsv", "a") as file:
        file.write("\t".join(["0", *["NaN"] * 24]) + "\n")
    # One without labels, which training could not use, with a series that is too long.
    lines = [",".join(map(str, series[0])), ",".join(["1"] * 30)]
    header = "@problemName New\n@classLabel false\n@data\n"
    (tmp_path / "unlabelled.ts").write_text(header + "\n".join(lines) + "\n")
    (tmp_path / "words.txt").write_text("these are words\n")

    files = [str(tmp_path / name) for name in ("New.tsv", "unlabelled.ts", "words.txt")]
    assert predict(tmp_path / "run", files, tmp_path / "p.csv", top=1) == (6, 3)
    rows = table(tmp_path / "p.csv")
    assert list(rows[0]) == ["file", "line", "rank", "label", "probability"]
    assert [row["line"] for row in rows] == ["1", "2", "3", "4", "5", "4"]
    probabilities = load(tmp_path / "run")(series)
    for row, expected in zip(rows, [*probabilities, probabilities[0]], strict=True):
        assert row["label"] == ("one", "two")[expected.argmax()]
        assert float(row["probability"]) == pytest.approx(expected.max(), abs=1e-4)
    bad = [(row["line"], row["reason"]) for row in table(tmp_path / "p.skipped.csv")]
    assert bad[0] == ("6", "no values") and bad[2][0] == "" and "not a number" in bad[2][1]
    assert bad[1] == ("5", "30 values, more than the 24 of the longest in training")


def test_a_segmentation_run_leaves_masks_in_its_colours_and_the_area_of_each_class(tmp_path, album):
    config = config_with("mask_folder,smoke", image_size=16)
    write_finished(tmp_path / "run", config, ["ground", "square"], (16, 16, 3))
    assert predict(tmp_path / "run", [str(album)], tmp_path / "p.csv") == (7, 2)
    rows = table(tmp_path / "p.csv")
    assert list(rows[0]) == ["file", "mask", "label", "pixels", "share"]
    for path in {row["file"] for row in rows}:
        mine = [row for row in rows if row["file"] == path]
        mask = Path(mine[0]["mask"])
        assert mask == tmp_path / "p" / f"{Path(path).relative_to(album)}.png"
        with Image.open(mask) as image, Image.open(path) as picture:
            assert image.mode == "P" and image.size == picture.size
            shown = np.asarray(image.convert("RGB"))
            np.testing.assert_array_equal(shown, paint_mask(np.asarray(image)))
            counts = np.bincount(np.asarray(image).ravel(), minlength=2)
        assert {r["label"]: int(r["pixels"]) for r in mine} == {
            name: count for name, count in zip(("ground", "square"), counts, strict=True) if count
        }
        assert sum(float(row["share"]) for row in mine) == pytest.approx(1)
    (tmp_path / "p.csv").unlink()
    with pytest.raises(UserError, match=r"p is there, where the masks would go"):
        predict(tmp_path / "run", [str(album)], tmp_path / "p.csv")
