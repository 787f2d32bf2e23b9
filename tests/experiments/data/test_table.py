"""A table of pictures and labels in the place of a folder."""

import numpy as np
import pytest
from picture_files import write_classes

from experiments import data
from experiments.configs import base
from experiments.core.errors import UserError
from experiments.data.fingerprint import compute_fingerprint, describe_changes
from experiments.train.validate import check_data_fit

NAMES = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(10)]


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "pets")


@pytest.fixture
def load(make_config, root):
    def load(text, encoding="utf-8", name="labels.csv", **fields):
        (root / name).write_text(text, encoding)
        return data.load(make_config(name="folder", source=root / name, **fields), 0)

    return load


def write_rows(*more, header="path,label", label=lambda name: name.partition("/")[0]):
    return "\n".join([header, *(f"{name},{label(name)}" for name in NAMES), *more]) + "\n"


def sizes(dataset):
    return [len(dataset.splits[split]) for split in ("train", "validation", "test")]


def test_a_table_is_read_like_a_folder(load, root, make_config):
    table = load(write_rows())
    folder = data.load(make_config(name="folder", source=root), 0)
    assert (table.name, table.shape, table.classes) == ("labels", (4, 6, 3), ["cat", "dog"])
    ours, theirs = (compute_fingerprint(dataset) for dataset in (table, folder))
    assert ours == theirs and not table.skipped


@pytest.mark.parametrize(
    ("header", "separator", "encoding"),
    [
        ("File;Class", ";", "utf-16"),
        ("\ufeffimage\tlabels", "\t", "utf-8"),
        ("Filename,CLASS", ",", "cp1252"),
    ],
)
def test_tables_of_other_programs(load, root, header, separator, encoding):
    rows = write_rows(header="").strip().replace(",", separator).replace("cat/0", "cat\\0")
    name = "labels.tsv" if separator == "\t" else "labels.csv"
    text = f"{header}\r\n" + rows.replace("\n", "\r\n").replace(
        f"{separator}dog", f'{separator}"Möwe"'
    )
    assert load(text, encoding, name).classes == ["Möwe", "cat"]
    assert not load(text, encoding, name).skipped


def test_splits_of_a_table(load):
    split = dict(zip(NAMES, ["train"] * 6 + ["val"] * 2 + ["Test"] * 2, strict=False))
    split |= {f"dog/{n}.png": split[f"cat/{n}.png"] for n in range(10)}
    pets = load(write_rows(header="path,label,split", label=lambda n: f"{n[:3]},{split[n]}"))
    assert sizes(pets) == [12, 4, 4] and not pets.skipped
    assert compute_fingerprint(pets).entries[-1].file == "dog/9.png"


def test_rows_that_cannot_be_used_are_listed(load, root):
    (root / "cat" / "9.png").write_bytes(b"no picture")
    more = [
        "cat/nowhere.png,cat",
        ",cat",
        "cat/8.png",
        "dog/1.png,dog",
        "dog/2.png,cat",
        f"{root}/dog/3.png,dog",
        "x" * 300 + ",cat",
        '"cat/5.png,cat\ncat/4.png,cat',
    ]
    pets = load(write_rows(*more))
    skipped = dict(pets.skipped)
    assert len(skipped) == len(pets.skipped) == 10
    assert "No such file" in skipped["cat/nowhere.png"]
    assert "not a picture" in skipped["cat/9.png"]
    assert skipped["labels.csv, line 23"] == "it names no picture"
    assert "cat/8.png has no label" in skipped["labels.csv, line 24"]
    assert skipped["labels.csv, line 25"] == "dog/1.png is in line 13 too"
    assert skipped["dog/2.png"] == "lines 14 and 26 differ in its label or split"
    assert skipped["labels.csv, line 27"] == "dog/3.png is in line 15 too"
    assert any("too long" in reason for reason in skipped.values())
    assert "a quotation mark is not closed" in skipped["labels.csv, line 30"]
    assert sum(sizes(pets)) == 18


def test_several_labels_are_tags(load):
    def name_labels(name):
        number = int(name[4])
        return "none" if number == 9 else f"{name[:3]}; small" if number < 5 else name[:3]

    pets = load(write_rows(label=name_labels), test=0.3)
    assert pets.classes == ["cat", "dog", "small"] and not pets.skipped
    rows = [source[i]["label"] for source in pets.splits.values() for i in range(len(source))]
    assert rows[0].dtype == np.float32 and np.sum(rows, axis=0).tolist() == [9, 9, 10]
    config = base.get_config("folder")
    with pytest.raises(UserError, match=r"--config.task=tagging"):
        check_data_fit(config, pets)
    with pytest.raises(UserError, match=r"--config.data.fold: .* more than one label"):
        load(write_rows(label=name_labels), fold=0, folds=2)


def test_numbers_are_in_order_and_changes_are_named(load):
    before = load(write_rows(label=lambda name: 10 if name[0] == "d" else 9))
    assert before.classes == ["9", "10"]
    after = load(write_rows(label=lambda name: 10 if name[0] == "d" or name[4] == "3" else 9))
    assert "1 file has another label (cat/3.png: 10 instead of 9)" in describe_changes(
        *map(compute_fingerprint, (before, after))
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("cat/1.png,cat\n", "has no column path or file"),
        ("path,label,class\n", "has the columns label and class"),
        ("path,label\n", "pictures of 0 labels"),
        ("path,label\ncat/1.png,cat\n", "pictures of 1 label"),
        ("path,label,split\ncat/1.png,cat,test\n", "pictures of 0 labels"),
        ("path,label\ncat/1.png,\0\n", "it is not text"),
    ],
)
def test_tables_that_are_none_are_explained(load, text, says):
    with pytest.raises(UserError, match=says):
        load(text)
