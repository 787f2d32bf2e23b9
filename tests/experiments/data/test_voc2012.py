import os

import numpy as np
import pytest
from picture_files import LISTS, encode_voc_mask, make_voc_files, write_files, write_voc_tar

from experiments import data
from experiments.core.errors import UserError
from experiments.data import archives, masks, voc2012


@pytest.fixture
def files():
    return make_voc_files()


def write_folder(root, files):
    write_files(root / "VOCdevkit" / "VOC2012", files)
    return root


@pytest.fixture
def load(make_config):
    def load(source="", **fields):
        return data.load(make_config(name="voc2012", source=source, **fields), 0)

    return load


def all_examples(dataset, split):
    return [dataset.splits[split][i] for i in range(len(dataset.splits[split]))]


@pytest.mark.parametrize("kind", ["tar", "parent", "VOCdevkit", "VOCdevkit/VOC2012", "around"])
def test_tar_and_folders_read_alike(load, files, tmp_path, kind):
    if kind == "tar":
        source = write_voc_tar(tmp_path / "a.tar", files)
    elif kind == "around":
        (tmp_path / "here").mkdir()
        source = write_voc_tar(tmp_path / "here" / voc2012.TAR, files).parent
    else:
        source = write_folder(tmp_path, files) / ("" if kind == "parent" else kind)
    voc = load(source)
    assert voc.name == "voc2012" and voc.shape == (6, 8, 3) and not voc.skipped
    assert len(voc.classes) == 21 and voc.classes[0] == "background"
    assert {k: len(v) for k, v in voc.splits.items()} == {"train": 36, "validation": 4, "test": 6}
    assert "official val split" in voc.notes[0]
    assert "40 of the official 1,464 train pictures: a subset." in voc.notes
    for split in voc.splits:
        for example in all_examples(voc, split):
            assert example["inputs"].shape == (6, 8, 3) and example["inputs"].dtype == np.uint8
            assert example["label"].shape == (6, 8) and example["label"].dtype == np.uint8
            index = round(example["inputs"][0, 0, 0] / 100)
            assert np.unique(example["label"]).tolist() == [0, index, 255]


def test_unusable_pictures_are_skipped(load, files, tmp_path):
    files["JPEGImages/2007_000000.jpg"] = b"no picture"
    files["SegmentationClass/2007_000001.png"] = encode_voc_mask(1, (8, 6))
    files["SegmentationClass/2007_000002.png"] = encode_voc_mask(21)
    del files["SegmentationClass/2007_000003.png"]
    del files["JPEGImages/2007_000040.jpg"]
    for source in (write_folder(tmp_path, files), write_voc_tar(tmp_path / "a.tar", files)):
        voc = load(source)
        assert [file for file, _ in voc.skipped] == [
            *(f"JPEGImages/2007_{number:06}.jpg" for number in range(4)),
            "JPEGImages/2007_000040.jpg",
        ]
        assert all(reason for _, reason in voc.skipped)
        assert sum(len(split) for split in voc.splits.values()) == 41


def test_needed_files_are_unpacked_once(load, files, tmp_path, capsys):
    source = write_voc_tar(tmp_path / "a.tar", files)
    first = load(source)
    assert "(once)" in capsys.readouterr().out
    again = load(source)
    assert "(once)" not in capsys.readouterr().out
    for one, two in zip(all_examples(first, "train"), all_examples(again, "train"), strict=True):
        np.testing.assert_array_equal(one["label"], two["label"])
    unpacked = [path for path in (tmp_path / "prepared").rglob("*") if path.is_file()]
    assert len(unpacked) == 3 * 46 + 2 + 1  # pictures, two masks each, two lists, the mark
    assert not list((tmp_path / "prepared").rglob("2008_000000*"))


def test_changed_tar_is_unpacked_again(load, files, tmp_path):
    source = tmp_path / "a.tar"
    write_voc_tar(source, files)
    load(source)
    files["SegmentationClass/2007_000040.png"] = encode_voc_mask(7)
    write_voc_tar(source, files)
    os.utime(source, (0, 0))
    assert load(source).splits["test"][0]["label"][2, 2] == 7


def test_interrupted_unpacking_continues(load, files, tmp_path, monkeypatch):
    source = write_voc_tar(tmp_path / "a.tar", files)
    read, seen = archives.read_tar, []

    def interrupted(archive, member):
        seen.append(member.name)
        if len(seen) == 30:
            raise KeyboardInterrupt
        return read(archive, member)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "read_tar", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(source)
    assert not list((tmp_path / "prepared").rglob("*.part"))
    assert not list((tmp_path / "prepared").rglob("*.txt"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*.???")}
    assert before
    assert len(load(source).splits["test"]) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop(f"{LISTS}/train.txt"), "train.txt"),
        (lambda f: f.update({f"{LISTS}/val.txt": b"\n"}), "val.txt lists no pictures"),
        (
            lambda f: f.update({f"{LISTS}/val.txt": b"2007_000007\n"}),
            "2007_000007, are in both",
        ),
        (
            lambda f: [f.pop(name) for name in list(f) if name.startswith("SegmentationClass")],
            r"none of the 40 pictures of train.txt.*its mask cannot be read",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_incomplete_files_are_explained(load, files, tmp_path, change, message, kind):
    change(files)
    write = {"tar": write_voc_tar, "folder": write_folder}[kind]
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "a.tar" if kind == "tar" else tmp_path, files))


def test_other_files_are_refused(load, files, tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*--config\.data\.source"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no ImageSets/Segmentation"):
        load(tmp_path / "empty")
    (tmp_path / "b.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(UserError, match="not a tar file"):
        load(tmp_path / "b.tar")
    with pytest.raises(UserError, match=r"train\.txt is missing from"):
        load(write_voc_tar(tmp_path / "c.tar", files, "VOCdevkit/VOC2007"))
    whole = write_voc_tar(tmp_path / "d.tar", files)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UserError, match="is not complete"):
        load(whole)


def test_unwritable_folder_is_reported(load, files, tmp_path):
    (tmp_path / "prepared").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"could not be unpacked to .*--config\.data\.dir"):
        load(write_voc_tar(tmp_path / "a.tar", files))


def test_download(check_download, load, files, tmp_path):
    check_download(voc2012, load, write_voc_tar(tmp_path / "a.tar", files).read_bytes())


def test_the_real_files(load, real_data):
    voc = load(real_data("voc2012/VOCdevkit"))
    assert {k: len(v) for k, v in voc.splits.items()} == {
        "train": 144,
        "validation": 16,
        "test": 80,
    }
    assert voc.shape == (0, 0, 3) and not voc.skipped
    assert voc2012.CLASSES[15] == "person"
    example = voc.splits["test"][0]
    assert example["inputs"].shape[:2] == example["label"].shape
    assert set(np.unique(example["label"])) <= {*range(21), masks.IGNORE}
