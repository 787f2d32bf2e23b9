import numpy as np
import pytest
from picture_files import encode, encode_grey, rotate, write_classes
from PIL import Image

from experiments import data
from experiments.core.errors import UserError


@pytest.fixture
def root(tmp_path):
    return tmp_path / "pets"


@pytest.fixture
def load(make_config, root):
    def load(**fields):
        return data.load(make_config(name="folder", source=root, **fields), 0)

    return load


def sizes(dataset):
    return [len(dataset.splits[split]) for split in ("train", "validation", "test")]


def test_classes_are_split_here(load, root):
    write_classes(root)
    pets = load()
    assert (pets.name, pets.shape, pets.classes) == ("pets", (4, 6, 3), ["cat", "dog"])
    assert sizes(pets) == [14, 2, 4] and len(pets.notes) == 2
    for source in pets.splits.values():
        for example in (source[i] for i in range(len(source))):
            assert example["inputs"].shape == (4, 6, 3) and example["inputs"].dtype == np.uint8
            assert (example["inputs"][0, 0, 0] >= 100) == example["label"]


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_split_folders_are_used(load, root, validation):
    for split, count in (("train", 10), (validation, 3), ("test", 2)):
        write_classes(root / split, count)
    assert sizes(load()) == [20, 6, 4]


def test_unusable_hidden_and_empty_files(load, root):
    write_classes(root)
    (root / "cat" / "notes.txt").write_text("not a picture")
    broken = (root / "cat" / "0.png").read_bytes()[:-30]
    (root / "cat" / "broken.png").write_bytes(broken)
    (root / "cat" / ".hidden.png").write_text("hidden")
    (root / ".cache").mkdir()
    (root / "bird").mkdir()
    pets = load()
    assert sorted(file for file, _ in pets.skipped) == ["cat/broken.png", "cat/notes.txt"]
    assert all(reason for _, reason in pets.skipped)
    assert pets.classes == ["cat", "dog"] and sum(sizes(pets)) == 20
    assert "No usable pictures in bird." in pets.notes


def test_exif_rotation_is_applied(load, root):
    write_classes(root)
    for path in root.rglob("*.png"):
        path.write_bytes(encode(Image.open(path), exif=rotate(6)))
    pets = load()
    assert pets.shape == (6, 4, 3) == pets.splits["train"][0]["inputs"].shape


def test_different_sizes_have_no_common_shape(load, root):
    write_classes(root)
    (root / "cat" / "wide.png").write_bytes(encode_grey(0, size=(9, 4)))
    pets = load()
    assert pets.shape == (0, 0, 3)


def test_class_without_training_pictures_is_refused(load, root):
    write_classes(root / "train")
    write_classes(root / "test", 2, ("cat", "bird"))
    with pytest.raises(UserError, match=r"test/bird: there is no such class"):
        load()


def test_class_without_test_pictures_is_noted(load, root):
    write_classes(root / "train")
    write_classes(root / "test", 2, ("cat",))
    assert "test has no pictures of dog." in load().notes


def test_other_layouts_are_refused(load, root, make_config):
    with pytest.raises(UserError, match="No folder of pictures is set"):
        data.load(make_config(name="folder"), 0)
    with pytest.raises(UserError, match="pets is not a folder"):
        load()
    write_classes(root, classes=("cat",))
    with pytest.raises(UserError, match="at least two class folders"):
        load()


def test_splits_without_train_are_refused(load, root):
    write_classes(root / "test")
    with pytest.raises(UserError, match="no folder train"):
        load()
