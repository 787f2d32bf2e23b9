"""The user's own objects in COCO's format, in the layouts that tools write, awkward ones among them."""

import json

import numpy as np
import pytest
from picture_files import encode, rotate, write_files
from PIL import Image
from pycocotools import mask as coco_mask

from experiments import data
from experiments.core.errors import UserError
from experiments.data import coco_folder, fingerprint
from experiments.data.instances import VOID

CATEGORIES = [{"id": 90, "name": "cell"}, {"id": 7, "name": "nucleus"}]
HEIGHT, WIDTH = 10, 12


def outline(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def encode_runs(left, top, right, bottom, compressed):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    code = coco_mask.encode(mask)
    if compressed:
        return {"size": code["size"], "counts": code["counts"].decode()}
    values = mask.T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate([[0], values, [2]])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(changes, prepend=0).tolist()}


def make_content(count=10, start=0, **fields):
    """Pictures of a nucleus on a cell, in turn as polygons and run lengths, with a crowd at the right."""
    images, annotations = [], []
    for index in range(start, start + count):
        images.append(
            {"id": 100 + index, "file_name": f"{index:02}.png", "height": HEIGHT, "width": WIDTH}
        )
        cell = encode_runs(1, 1, 8, 9, index % 4 < 2) if index % 2 else outline(1, 1, 8, 9)
        for category, segmentation, is_crowd in (
            (7, outline(3, 3, 6, 6), 0),
            (90, cell, 0),
            (90, encode_runs(7, 0, 12, 10, True), 1),
        ):
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": 100 + index,
                    "category_id": category,
                    "segmentation": segmentation,
                    "iscrowd": is_crowd,
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES, **fields}


def write_pictures(folder, count=10, start=0):
    values = range(start, start + count)
    pictures = {f"{n:02}.png": encode(np.full((HEIGHT, WIDTH, 3), 9 * n, np.uint8)) for n in values}
    return write_files(folder, pictures)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cells"


@pytest.fixture
def load(make_config, root):
    def load(source=None, **fields):
        return data.load(make_config(name="coco_folder", source=source or root, **fields), 0)

    return load


def sizes(dataset):
    return [len(dataset.splits[split]) for split in ("train", "validation", "test")]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("annotations.json", ""),
        ("annotations.json", "images"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_default.json", "annotations"),
    ],
)
def test_one_file_is_split_here(load, root, name, folder):
    write_pictures(root / folder)
    path = write_json(root / name, make_content())
    cells = load()
    assert cells.name == "cells" and cells.classes == ["background", "nucleus", "cell"]
    assert sizes(cells) == [7, 1, 2] and cells.shape == (HEIGHT, WIDTH, 3) and not cells.skipped
    assert "train: 20 objects in 10 pictures, 2.0 on average and 2 at most." in cells.notes
    assert sizes(load(path)) == [7, 1, 2]


def test_examples_have_a_map_and_annotations(load, root):
    write_pictures(root)
    write_json(root / "train.json", make_content())
    cells = load(validation=0, test=0)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, 7:] = VOID
    expected[1:9, 1:8] = 2
    expected[3:6, 3:6] = 1
    for index in range(4):
        example = cells.splits["train"][index]
        assert (example["inputs"] == 9 * index).all() and example["inputs"].dtype == np.uint8
        np.testing.assert_array_equal(example["label"], expected)
        assert example["label"].dtype == np.uint8 and example["classes"].dtype == np.int32
        assert example["classes"].tolist() == [1, 2]
        described = [
            (one["category_id"], one["iscrowd"], one["area"], one["bbox"])
            for one in example["annotations"]
        ]
        # The cell is whole here.
        assert described == [
            (1, 0, 9, [3, 3, 3, 3]),
            (2, 0, 56, [1, 1, 7, 8]),
            (2, 1, 50, [7, 0, 5, 10]),
        ]
        masks = [coco_mask.decode(one["segmentation"]) for one in example["annotations"]]
        assert [int(mask.sum()) for mask in masks] == [9, 56, 50]
    labels = cells.splits["train"].labels
    assert len(set(labels.tolist())) == 1  # polygons and run lengths mean the same
    assert len(set(cells.splits["train"].digests)) == 10


def test_a_run_notices_changed_annotations(load, root):
    write_pictures(root)
    content = make_content()
    write_json(root / "train.json", content)
    before = fingerprint.compute_fingerprint(load())
    assert len(before.entries) == 10
    assert before.digest == fingerprint.compute_fingerprint(load()).digest
    content["annotations"][4]["segmentation"] = outline(1, 1, 8, 8)
    write_json(root / "train.json", content)
    changes = fingerprint.describe_changes(before, fingerprint.compute_fingerprint(load()))
    assert changes == "1 file has another label (01.png)"


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}.json", "images/{}"),
        ("{}.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
        ("instances_{}.json", "images"),
    ],
)
def test_split_files_are_found(load, root, file, folder):
    start = 0
    for split, count in (("train", 5), ("val", 3), ("test", 2)):
        write_pictures(root / folder.format(split), count, start)
        write_json(root / file.format(split), make_content(count, start))
        start += count
    if "2017" in file:
        write_json(root / "annotations/captions_train2017.json", {"images": []})
    cells = load()
    assert sizes(cells) == [5, 3, 2] and not cells.skipped
    assert cells.splits["test"][0]["inputs"][0, 0, 0] == 9 * 8


def test_pictures_without_objects_are_legal(load, root):
    write_pictures(root)
    content = make_content()
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] % 2]
    write_json(root / "train.json", content)
    cells = load()
    assert sizes(cells) == [7, 1, 2] and not cells.skipped
    examples = [cells.splits["train"][index] for index in range(7)]
    empty = [example for example in examples if not len(example["classes"])]
    assert empty and not any(example["label"].any() for example in empty)
    assert all(example["annotations"] == [] for example in empty)


def test_what_cannot_be_used_is_listed(load, root):
    write_pictures(root)
    content = make_content()
    images, annotations = content["images"], content["annotations"]
    (root / "01.png").unlink()
    (root / "02.png").write_bytes(b"no picture")
    images[3]["width"] = 13
    images += [{"id": 100, "file_name": "04.png"}, {"file_name": "04.png"}, None]
    images.append({"id": 150, "file_name": "05.png"})
    annotations[0]["segmentation"] = [[1, 1, 2, 2]]
    annotations[1]["category_id"] = 8
    annotations[2]["image_id"] = 999
    annotations += [None, {"image_id": 109}]
    write_json(root / "train.json", content)
    cells = load(validation=0, test=0)
    assert len(cells.splits["train"]) == 7
    skipped = dict([*cells.skipped, *cells.incomplete])
    assert {file for file, _ in cells.skipped} == {
        *("train.json: 01.png", "02.png", "03.png", "train.json: images[11]"),
        *("train.json: images[12]", "train.json: 04.png", "train.json: 05.png"),
    }
    assert {file for file, _ in cells.incomplete} == {
        *("train.json", "train.json: 00.png", "train.json: 09.png"),
    }
    assert any("in 3 rows of skipped.csv, such as train.json: 2" in note for note in cells.notes)
    assert "no such picture" in skipped["train.json: 01.png"]
    assert "not a picture" in skipped["02.png"]
    assert "12 by 10, but its annotations are for 13 by 10" in skipped["03.png"]
    assert "twice" in skipped["train.json: 04.png"] and "twice" in skipped["train.json: 05.png"]
    assert skipped["train.json"] == "2 annotations of no picture, such as annotation 1002"
    assert skipped["train.json: 00.png"] == (
        "2 of 2 annotations left out: annotation 1000 (a polygon of it has 4 numbers, not three points or "
        "more); annotation 1001 (there is no category 8)"
    )
    assert skipped["train.json: 09.png"].startswith("1 of 4 annotations left out: annotations[31] ")
    by_name = dict(zip(cells.splits["train"].names, cells.splits["train"], strict=True))
    assert not len(by_name["00.png"]["classes"]) and len(by_name["09.png"]["classes"]) == 2


def test_bad_annotations_are_listed_and_are_no_bad_files(make_config, root, tmp_path):
    write_pictures(root)
    content = make_content()
    for annotation in content["annotations"][::3]:
        annotation["segmentation"] = []
    write_json(root / "train.json", content)
    config = make_config(name="coco_folder", source=root, max_skipped=0.0)
    cells = data.load_for_training(config, 0, image_size=16, workdir=tmp_path)
    assert sum(sizes(cells)) == 10 and not cells.skipped
    rows = (tmp_path / "skipped.csv").read_text().splitlines()
    assert len(rows) == 11
    assert rows[1].startswith('train.json: 00.png,"1 of 3 annotations left out: annotation 1000 ')


def test_a_box_without_a_mask_is_void(load, root):
    write_pictures(root)
    content = make_content()
    content["annotations"] = content["annotations"][1::3]  # the cells
    content["annotations"] += [
        {"id": index, "image_id": 100 + index, "category_id": 7, "bbox": [6.5, 0, 9, 3]}
        for index in range(10)
    ]
    write_json(root / "train.json", content)
    cells = load()
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:3, 6:] = VOID
    expected[1:9, 1:8] = 1
    example = cells.splits["train"][0]
    np.testing.assert_array_equal(example["label"], expected)
    assert example["classes"].tolist() == [2]
    assert [one["iscrowd"] for one in example["annotations"]] == [0, 1]
    assert cells.incomplete[0][1].startswith("1 of 2 annotations left out: annotation 0 (it has no")


def test_pictures_are_upright(load, root):
    write_pictures(root)
    sideways = Image.new("RGB", (HEIGHT, WIDTH))
    write_files(root, {"00.png": encode(sideways, "JPEG", exif=rotate(6))})
    write_json(root / "train.json", make_content())
    assert load().shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", "train.json cannot be read: it is no JSON"),
        (lambda c: [], "cannot be read: it holds no JSON object"),
        (lambda c: {"images": [], "categories": []}, "it has no annotations"),
        (lambda c: c | {"categories": [{"id": "a", "name": "cell"}]}, r"categories\[0\]\.id"),
        (lambda c: c | {"categories": [*CATEGORIES, {"id": 7, "name": "x"}]}, "of its own"),
        (lambda c: c | {"categories": [*CATEGORIES, {"id": 8, "name": "cell"}]}, "of its own"),
        (lambda c: c | {"categories": [{"id": 0, "name": "background"}]}, "where no object is"),
        (lambda c: c | {"categories": []}, "has 0 categories"),
        (lambda c: c | {"annotations": []}, "nothing to learn"),
        (lambda c: c | {"images": []}, "no picture that can be used"),
    ],
)
def test_unusable_files_are_errors(load, root, change, message):
    write_pictures(root)
    write_json(root / "train.json", change(make_content()))
    with pytest.raises(UserError, match=message):
        load()


def test_categories_are_those_of_training(load, root):
    """Ids may differ from file to file: names decide."""
    write_pictures(root)
    write_json(root / "train.json", make_content(8))
    other = [{"id": 7, "name": "cell"}, {"id": 90, "name": "nucleus"}, {"id": 1, "name": "unused"}]
    write_json(root / "val.json", make_content(2, 8, categories=other))
    cells = load(test=0)
    assert cells.classes == ["background", "nucleus", "cell"]
    assert cells.splits["validation"][0]["classes"].tolist() == [2, 1]
    other[0]["name"] = "dust"
    write_json(root / "val.json", make_content(2, 8, categories=other))
    with pytest.raises(UserError, match=r"val\.json has objects of dust"):
        load()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no JSON file"),
        (["val.json", "test.json"], r"no annotations for training, only test\.json, val\.json"),
        (["train.json", "instances_train.json"], ""),
        (["train.json", "a_train.json"], r"a_train\.json and train\.json are both for train"),
    ],
)
def test_files_are_told_apart(load, root, names, message):
    write_pictures(root)
    for name in names:
        write_json(root / name, make_content())
    if not message:
        assert coco_folder.find_files(root) == {"train": root / "instances_train.json"}
        return
    with pytest.raises(UserError, match=message):
        load()


def test_a_missing_source_is_an_error(load, make_config):
    with pytest.raises(UserError, match="does not exist"):
        load()
    with pytest.raises(UserError, match="No annotations are set"):
        data.load(make_config(name="coco_folder"), 0)
