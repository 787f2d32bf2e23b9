import os
import pathlib

import numpy as np
import pytest
from picture_files import WNIDS, encode_jpeg, make_tiny_imagenet_files, write_files
from picture_files import write_tiny_imagenet_zip as write_zip

from experiments import data
from experiments.core.errors import UserError
from experiments.data import tiny_imagenet

ROOT = "tiny-imagenet-200"


@pytest.fixture
def files():
    return make_tiny_imagenet_files()


@pytest.fixture
def load(make_config):
    def load(source=""):
        return data.load(make_config(name="tiny_imagenet", source=source, validation=0.25), 0)

    return load


def all_examples(dataset, split):
    return [dataset.splits[split][i] for i in range(len(dataset.splits[split]))]


@pytest.mark.parametrize("kind", ["zip", "folder", "parent"])
def test_zip_and_folders_read_alike(load, files, tmp_path, kind):
    files["train/n01/images/n01_0.JPEG"] = encode_jpeg(60, "L")
    files["train/n02/images/n02_0.JPEG"] = encode_jpeg()[:200]
    if kind == "zip":
        source = write_zip(tmp_path / "a.zip", files)
    else:
        source = write_files(tmp_path / ROOT, files)
        source = source if kind == "folder" else tmp_path
    tiny = load(source)
    assert tiny.shape == (64, 64, 3)
    assert tiny.classes == ["goldfish", "crane (n02)", "crane (n03)"]
    assert {k: len(v) for k, v in tiny.splits.items()} == {"train": 8, "validation": 3, "test": 6}
    assert [file for file, _ in tiny.skipped] == ["train/n02/images/n02_0.JPEG"]
    assert "11 of the official 100,000 training pictures: a subset." in tiny.notes
    assert "official val split" in tiny.notes[0]
    for split in tiny.splits:
        for example in all_examples(tiny, split):
            assert example["inputs"].shape == (64, 64, 3) and example["inputs"].dtype == np.uint8
            assert abs(int(example["inputs"][0, 0, 0]) - 60 * (example["label"] + 1)) <= 3


def test_preparation_is_reused_until_the_source_changes(load, files, tmp_path, capsys):
    source = write_zip(tmp_path / "a.zip", files)
    first = load(source)
    assert "(once)" in capsys.readouterr().out
    again = load(source)
    assert "(once)" not in capsys.readouterr().out
    for one, two in zip(all_examples(first, "train"), all_examples(again, "train"), strict=True):
        np.testing.assert_array_equal(one["inputs"], two["inputs"])
    assert (first.notes, first.classes) == (again.notes, again.classes)

    for wnid in WNIDS:
        files[f"train/{wnid}/images/more.JPEG"] = encode_jpeg(60 * int(wnid[1:]))
    larger = load(write_zip(source, files))
    assert sum(len(larger.splits[split]) for split in ("train", "validation")) == 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("wnids.txt"), "no wnids.txt"),
        (lambda f: f.pop("words.txt"), "words.txt is missing"),
        (lambda f: f.pop("val/val_annotations.txt"), "val_annotations.txt is missing"),
        (lambda f: f.pop("val/images/val_10.JPEG"), r"lacks 1 of the 6 pictures.*val_10"),
        (lambda f: f.update({"wnids.txt": b"n01 n02"}), "train/n03 is not a class"),
        (lambda f: f.update({"wnids.txt": b"n01 n02 n03 n04"}), r"no training .* \(n04\)"),
        (
            lambda f: f.update({"val/val_annotations.txt": b"val_10.JPEG\tn09\t0"}),
            r"names classes not in wnids.txt \(n09\)",
        ),
    ],
)
def test_incomplete_files_are_refused(load, files, tmp_path, change, message):
    change(files)
    with pytest.raises(UserError, match=message) as error:
        load(write_zip(tmp_path / "a.zip", files))
    assert "--config.data.source" in str(error.value)
    assert not (tmp_path / "prepared").exists()


def test_a_broken_zip_is_refused(load, files, tmp_path):
    source = write_zip(tmp_path / "a.zip", files)
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete zip"):
        load(source)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere.zip")


def test_an_interrupted_preparation_leaves_nothing(load, files, tmp_path, monkeypatch):
    source = write_zip(tmp_path / "a.zip", files)
    read = tiny_imagenet.ZipFiles.read

    def interrupted(self, name):
        if name.startswith("val/images"):
            raise KeyboardInterrupt
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_imagenet.ZipFiles, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(source)
    assert not list((tmp_path / "prepared").rglob("dataset_info.json"))
    (version,) = (tmp_path / "prepared" / "tiny_imagenet").iterdir()
    assert len(load(source).splits["test"]) == 6
    # Leftovers of a killed preparation are deleted once they are old.
    (version / "incomplete.X_1.1.0").mkdir()
    os.utime(version / "incomplete.X_1.1.0", (0, 0))
    (version / "incomplete.Y_1.1.0").mkdir()
    load(source)
    (version / "incomplete.Y_1.1.0").rmdir()
    assert [p.name for p in version.iterdir()] == ["1.1.0"]


def test_two_processes_may_prepare_at_once(load, files, tmp_path, monkeypatch):
    source = write_zip(tmp_path / "a.zip", files)
    prepare = tiny_imagenet.TinyImagenet.download_and_prepare

    def overtaken(self, **options):
        prepare(self, **options)
        raise OSError("Directory not empty")

    monkeypatch.setattr(tiny_imagenet.TinyImagenet, "download_and_prepare", overtaken)
    assert len(load(source).splits["test"]) == 6


def test_unwritable_folder_is_reported(load, files, tmp_path):
    (tmp_path / "prepared").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"could not be prepared in .*--config\.data\.dir"):
        load(write_zip(tmp_path / "a.zip", files))


def test_copies_are_noticed(load, files, tmp_path):
    for number, name in enumerate(sorted(name for name in files if name.endswith(".JPEG"))):
        files[name] = encode_jpeg(10 * number)
    files["val/images/val_10.JPEG"] = files["train/n02/images/n02_3.JPEG"]
    for _ in range(2):  # Prepared, and read from what was prepared.
        tiny = load(write_zip(tmp_path / "a.zip", files))
        (note,) = [note for note in tiny.notes if "same content" in note]
        assert "1 of the 6 examples of test is also in" in note
        assert "val/images/val_10.JPEG is train/n02/images/n02_3.JPEG" in note


@pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_undecodable_list_is_named(load, files, tmp_path, name):
    files[name] = b"\xff\xfe\x00" * 5
    with pytest.raises(UserError, match=rf"{name} of .*a\.zip cannot be read"):
        load(write_zip(tmp_path / "a.zip", files))


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_usable_picture_is_refused(load, files, tmp_path, split):
    for name in files:
        if name.startswith(f"{split}/") and name.endswith(".JPEG"):
            files[name] = b""
    with pytest.raises(UserError, match=rf"no usable picture .*{split}"):
        load(write_zip(tmp_path / "a.zip", files))


def test_members_that_point_outside_are_never_written(load, files, tmp_path):
    files["../../escaped.txt"] = b"outside"
    files["train/n01/images/../../../../escaped.JPEG"] = encode_jpeg()
    load(write_zip(tmp_path / "a.zip", files))
    assert not list(tmp_path.parent.glob("escaped*")) and not list(tmp_path.rglob("escaped*"))


def test_download(check_download, load, files, tmp_path):
    check_download(tiny_imagenet, load, write_zip(tmp_path / "a.zip", files).read_bytes())


def test_the_real_files(real_data):
    source = real_data("tiny_imagenet/tiny-imagenet-200.zip")
    layout = tiny_imagenet.read_layout(tiny_imagenet.open_files(pathlib.Path(source)))
    assert len(layout.wnids) == len(set(layout.classes)) == 200
    assert len(layout.members["train"]) == 16_000 and len(layout.members["val"]) == 2_000
    assert "goldfish" in layout.classes
