"""Examples of a run stay in their splits, whatever is added to its data."""

import pytest
from picture_files import encode_grey, write_classes

from experiments import data
from experiments.core.errors import UserError
from experiments.data.fingerprint import compute_fingerprint


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "pets")


@pytest.fixture
def load(make_config, root):
    def load(known=(), **fields):
        return data.load(make_config(name="folder", source=root, **fields), 0, known=known)

    return load


def list_splits(dataset):
    return {entry.file: entry.split for entry in compute_fingerprint(dataset).entries}


def test_pictures_that_are_added_move_no_others(load, root):
    known = compute_fingerprint(load()).entries
    before = {entry.file: entry.split for entry in known}
    for number in range(30):
        (root / "cat" / f"00{number}.png").write_bytes(encode_grey(200 + number))
    dealt_anew = list_splits(load())
    assert any(dealt_anew[file] != split for file, split in before.items())
    kept = load(known)
    after = list_splits(kept)
    assert {file: after[file] for file in before} == before and len(after) == 50
    assert set(after.values()) == {"train", "validation", "test"}
    assert any("the split" in note for note in kept.notes)
    # A picture that has got another name is known by its content.
    (root / "cat" / "3.png").rename(root / "cat" / "zebra.png")
    assert list_splits(load(known))["cat/zebra.png"] == before["cat/3.png"]


def test_nothing_changes_where_nothing_was_added(load):
    dataset = load()
    again = load(compute_fingerprint(dataset).entries)
    assert compute_fingerprint(again) == compute_fingerprint(dataset)
    assert list(again.notes) == list(dataset.notes)


def test_shared_and_relabelled_splits(load, root):
    chosen = {"validation": 0.0, "classes": "dog,cat"}
    known = compute_fingerprint(load(**chosen)).entries
    (root / "dog" / "new.png").write_bytes(encode_grey(250))
    dataset = load(known, **chosen)
    again = compute_fingerprint(dataset)
    assert {entry[1:] for entry in known} < {entry[1:] for entry in again.entries}
    in_train, in_validation = (
        [entry[1:] for entry in again.entries if entry.split == split]
        for split in ("train", "validation")
    )
    assert in_train == in_validation
    first = dataset.splits["train"][0]
    assert first["label"] == 1 and first["inputs"].max() < 100  # a cat


def test_a_split_of_which_nothing_is_left_is_refused(load, root):
    known = compute_fingerprint(load()).entries
    for entry in known:
        if entry.split == "test":
            (root / entry.file).unlink()
    with pytest.raises(UserError, match="nothing is left of the test split"):
        load(known)
