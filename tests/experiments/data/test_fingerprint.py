"""A fingerprint sees each kind of change, and sees nothing where there is none."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from picture_files import encode, encode_grey, encode_voc_mask, write_classes, write_files

from experiments import data
from experiments.core import digests
from experiments.data.dataset import Dataset
from experiments.data.fingerprint import compute_fingerprint, describe_changes
from experiments.data.views import Arrays, Subset, list_labels


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "pets")


@pytest.fixture
def print_folder(make_config, root):
    def compute(source=root, name="folder", **fields):
        config = make_config(name=name, source=source, max_skipped=0.5, **fields)
        return compute_fingerprint(data.load_for_training(config, 0, image_size=8))

    return compute


def test_a_moved_and_touched_folder_is_the_same_data(print_folder, root, tmp_path):
    before = print_folder()
    assert before.examples == {"train": 14, "validation": 2, "test": 4}
    os.utime(root / "cat" / "3.png", (1, 1))
    root.rename(tmp_path / "moved")
    assert print_folder(tmp_path / "moved") == before
    assert describe_changes(before, before) == ""


def change_content(root):
    (root / "cat" / "3.png").write_bytes(encode_grey(77))


def add(root):
    (root / "cat" / "new.png").write_bytes(encode_grey(77))


def remove(root):
    (root / "cat" / "3.png").unlink()


def relabel(root):
    (root / "cat" / "3.png").rename(root / "dog" / "cat3.png")


def rename_class(root):
    (root / "dog").rename(root / "wolf")


def add_class(root):
    write_classes(root, classes=("bird",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_content, "1 file has another content (cat/3.png)"),
        (add, "1 file was added (cat/new.png)"),
        (remove, "1 file was removed (cat/3.png)"),
        (relabel, "1 file was renamed (cat/3.png to dog/cat3.png)"),
        (rename_class, "the class dog is now called wolf"),
        (add_class, "1 class was added (bird)"),
    ],
)
def test_changes_are_named(print_folder, root, change, words):
    before = print_folder()
    change(root)
    after = print_folder()
    assert after.digest != before.digest and words in describe_changes(before, after)
    # If the list was lost, something is still said.
    assert describe_changes(dataclasses.replace(before, entries=()), after)


def test_labels_orders_and_splits_of_arrays():
    inputs = np.arange(12, dtype=np.uint8).reshape(6, 1, 2, 1)
    labels = np.array([0, 1, 0, 1, 0, 1])

    def compute(order=range(6), labels=labels, classes=("a", "b")):
        pool = Arrays(inputs, labels, [f"Toy, line {n}" for n in range(6)])
        cuts = {"train": slice(4), "validation": slice(4, 5), "test": slice(5, 6)}
        parts = {name: Subset(pool, np.array(order)[cut]) for name, cut in cuts.items()}
        return compute_fingerprint(Dataset("toy", parts, classes, (1, 2, 1)))

    before = compute()
    assert "1 example has another label (Toy, line 1: a instead of b)" in describe_changes(
        before, compute(labels=np.array([0, 0, 0, 1, 0, 1]))
    )
    assert describe_changes(before, compute([1, 0, 2, 3, 4, 5])) == "the files are in another order"
    moved = describe_changes(before, compute([0, 1, 2, 5, 4, 3]))
    assert (
        "moved between splits (Toy, line 3 from train to test, Toy, line 5 from test to train)"
        in moved
    )
    assert "the classes are in another order" in describe_changes(
        before, compute(classes=("b", "a"))
    )
    assert compute() == before


def test_several_labels_and_masks():
    inputs = np.zeros((2, 1, 2, 1), np.uint8)
    several = np.array([[1, 0, np.nan], [1, 1, 0]], np.float32)

    def compute(labels):
        source = Arrays(inputs, labels)
        return compute_fingerprint(Dataset("toy", {"train": source}, "abc", (1, 2, 1)))

    before = compute(several)
    assert [entry.label for entry in before.entries] == ["a", "a;b"]
    unknown = several.copy()
    unknown[1, 2] = np.nan
    assert "1 example has another label (example 1)" in describe_changes(before, compute(unknown))


def test_the_masks_of_pictures_count(print_folder, tmp_path):
    files = {f"images/{n}.png": encode(np.full((6, 8, 3), n, np.uint8)) for n in range(8)}
    files |= {f"masks/{n}.png": encode_voc_mask(1 + n % 2) for n in range(8)}
    root = write_files(tmp_path / "roads", files)
    before = print_folder(root, "mask_folder")
    (root / "masks" / "3.png").write_bytes(encode_voc_mask(1))
    after = print_folder(root, "mask_folder")
    assert "1 file has another label (images/3.png)" in describe_changes(before, after)


def test_a_source_that_knows_nothing_is_read():
    class Pictures:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"inputs": np.full((2, 2, 1), index), "label": np.full((2, 2), index)}

    dataset = Dataset("toy", {"train": Pictures()}, "ab", (2, 2, 1))
    first, second = (compute_fingerprint(dataset) for _ in range(2))
    assert first == second and len({entry.content for entry in first.entries}) == 3
    assert len(set(list_labels(Pictures()).tolist())) == 3


def test_extra_pictures_count(print_folder, root, tmp_path):
    more = write_classes(tmp_path / "more", count=2, size=(6, 4))
    before = print_folder(extra_train=more)
    shutil.copy(root / "dog" / "9.png", more / "cat" / "7.png")
    assert "1 file was added (extra_train/cat/7.png)" in describe_changes(
        before, print_folder(extra_train=more)
    )


def test_digest_of_a_large_file_is_sampled(tmp_path):
    file = tmp_path / "long.wav"
    content = bytearray(np.random.default_rng(0).bytes(2**20 + 5))
    seen = set()
    for change in (None, 0, len(content) - 1):
        if change is not None:
            content[change] ^= 1
        file.write_bytes(content)
        seen.add(digests.compute_sampled_digest(file))
    file.write_bytes(content[:-1])
    assert len(seen | {digests.compute_sampled_digest(file)}) == 4
