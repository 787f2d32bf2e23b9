"""Extra pictures to train on are checked, listed and compared as those of the data set are."""

import numpy as np
import pytest
from picture_files import encode_grey, write_classes, write_files

from experiments import data
from experiments.core.errors import UserError


@pytest.fixture
def load(make_config, tmp_path):
    root = write_classes(tmp_path / "pets")

    def load(max_skipped=0.5, workdir=None):
        config = make_config(
            name="folder", source=root, extra_train=tmp_path / "more", max_skipped=max_skipped
        )
        return data.load_for_training(config, 0, workdir=workdir)

    return load


def test_copies_of_test_pictures_are_noted(load, tmp_path):
    write_files(tmp_path / "more", {"cat/new.png": encode_grey(200)})
    assert not any("same content" in note for note in load().notes)
    write_files(tmp_path / "more", {f"cat/{n}.png": encode_grey(n) for n in range(10)})
    (note,) = (note for note in load().notes if "of test are also in train" in note)
    assert note.startswith("2 of the 4 examples") and "is extra_train/cat/" in note


def test_a_copy_with_another_label_is_noted(load, tmp_path):
    write_files(tmp_path / "more", {f"dog/{n}.png": encode_grey(n) for n in range(10)})
    assert any("different labels 7 times" in note for note in load().notes)


def test_what_cannot_be_used_is_listed_and_counted(load, tmp_path):
    files = {
        "cat/photo.jpg": encode_grey(200, "JPEG"),
        "cat/broken.png": encode_grey(200)[:40],
        "dog/notes.txt": b"no picture",
        "dog/program.eps": encode_grey(200, "EPS"),
        "dog/wide.png": encode_grey(200, size=(7, 4)),
        "dog/good.png": encode_grey(210),
    }
    write_files(tmp_path / "more", files)
    pets = load(workdir=tmp_path)
    train = pets.splits["train"]
    assert len(train) == 14 + 2
    found = [train[index] for index in range(14, 16)]
    assert [(int(one["inputs"].mean()), int(one["label"])) for one in found] == [(200, 0), (210, 1)]
    assert all(np.ptp(one["inputs"]) <= 2 for one in found)
    reasons = dict(pets.skipped)
    assert set(reasons) == {
        *("extra_train/cat/broken.png", "extra_train/dog/notes.txt"),
        *("extra_train/dog/program.eps", "extra_train/dog/wide.png"),
    }
    assert reasons["extra_train/dog/wide.png"] == "7 by 4, but the pictures of pets are 6 by 4"
    assert "EPS is not supported" in reasons["extra_train/dog/program.eps"]
    rows = (tmp_path / "skipped.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[1].startswith("extra_train/cat/broken.png,")
    with pytest.raises(UserError, match=r"4 of 26 files .* cannot be used"):
        load(max_skipped=0.1)


def test_without_a_usable_picture_nothing_is_trained(load, tmp_path):
    (tmp_path / "more" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="has no picture that can be used; it should hold"):
        load()
    write_files(tmp_path / "more", {"cat/wide.png": encode_grey(200, size=(7, 4))})
    with pytest.raises(UserError, match=r"wide\.png: 7 by 4, but the pictures of pets are 6 by 4"):
        load()
