"""Objects of masks: those of VOC's SegmentationObject, of a folder of one's own, and components."""

import numpy as np
import pytest
from picture_files import encode, encode_voc_mask, make_voc_files, write_files, write_voc_tar
from PIL import Image

from experiments.core.errors import UserError
from experiments.data import instances
from experiments.data.fingerprint import compute_fingerprint, describe_changes

VOID = instances.VOID


def find_components_by_filling(class_mask, min_pixels):
    """The oracle: floods from each pixel that no object has yet, class by class."""
    ids = np.where((class_mask == 0) | (class_mask == VOID), class_mask, 0).astype(int)
    height, width = class_mask.shape
    classes, seen = [], (class_mask == 0) | (class_mask == VOID)
    for number in sorted(set(class_mask.ravel().tolist()) - {0, VOID}):
        for start in np.argwhere(class_mask == number).tolist():
            if seen[tuple(start)]:
                continue
            waiting, members = [tuple(start)], []
            seen[tuple(start)] = True
            while waiting:
                row, column = waiting.pop()
                members.append((row, column))
                for y in range(max(0, row - 1), min(height, row + 2)):
                    for x in range(max(0, column - 1), min(width, column + 2)):
                        if not seen[y, x] and class_mask[y, x] == number:
                            seen[y, x] = True
                            waiting.append((y, x))
            if len(members) >= min_pixels:
                classes.append(number)
            for member in members:
                ids[member] = len(classes) if len(members) >= min_pixels else VOID
    return ids, classes


@pytest.mark.parametrize("min_pixels", [1, 4])
def test_components_are_those_of_a_flood(rng, min_pixels):
    for _ in range(5):
        class_mask = rng.choice([0, 0, 0, 2, 2, 7, VOID], (13, 11)).astype(np.uint8)
        ids, classes = instances.find_components(class_mask, min_pixels)
        expected, expected_classes = find_components_by_filling(class_mask, min_pixels)
        np.testing.assert_array_equal(ids, expected)
        assert classes.tolist() == expected_classes
        assert (ids.dtype, classes.dtype) == (np.uint8, np.int32)


def test_no_map_has_more_than_254_objects():
    class_mask = np.zeros((40, 40), np.uint8)
    class_mask[::2, ::2] = 3  # 400 objects of a pixel
    class_mask[0, 30:] = 3  # joins five of them
    ids, classes = instances.find_components(class_mask, min_pixels=1)
    assert len(classes) == 254 and set(np.unique(ids)) == {0, *range(1, 255), VOID}
    assert ids[0, 30] == ids[0, 39] != VOID


def test_objects_are_numbered_in_order():
    class_mask = np.array([[0, 5, 5, 255], [9, 9, 0, 0], [4, 255, 1, 0]], np.uint8)
    object_mask = np.array([[0, 8, 8, 255], [3, 3, 0, 0], [0, 8, 255, 0]], np.uint8)
    ids, classes = instances.number_objects(class_mask, object_mask)
    # Void in either mask is void, and so is a class without an object.
    assert ids.tolist() == [[0, 2, 2, 255], [1, 1, 0, 0], [255, 255, 255, 0]]
    assert classes.tolist() == [9, 5]
    painted = instances.paint_classes(ids, classes)
    assert painted.tolist() == [[0, 5, 5, 255], [9, 9, 0, 0], [255, 255, 255, 0]]


@pytest.mark.parametrize(
    ("classes", "objects", "reason"),
    [
        ([[5, 7]], [[2, 2]], "object 2 .* the classes 5 and 7"),
        ([[0, 7]], [[2, 2]], "object 2 .* the classes 0 and 7"),
        ([[0, 7]], [[2, 3]], "object 2 .* no class"),
        ([[255, 7]], [[2, 3]], "object 2 .* no class"),
        ([[1, 7]], [[1], [3]], "1 by 2, not 2 by 1"),
    ],
)
def test_objects_without_one_class_are_refused(classes, objects, reason):
    with pytest.raises(ValueError, match=reason):
        instances.number_objects(np.array(classes, np.uint8), np.array(objects, np.uint8))


def test_the_smallest_objects_become_void(rng):
    ids = rng.choice([0, 1, 2, 3, 4, 5, VOID], (20, 20), p=[0.3, 0.2, 0.02, 0.2, 0.1, 0.1, 0.08])
    sizes = [(ids == number).sum() for number in range(1, 6)]
    kept = sorted(sorted(range(5), key=lambda k: -sizes[k])[:3])
    found, classes = instances.select_objects(ids, np.array([9, 8, 7, 6, 5]), 3)
    assert classes.tolist() == [[9, 8, 7, 6, 5][k] for k in kept]
    for number, old in enumerate(kept, 1):
        np.testing.assert_array_equal(found == number, ids == old + 1)
    np.testing.assert_array_equal(found == 0, ids == 0)
    assert set(np.unique(found)) <= {0, 1, 2, 3, VOID}


# ---------------------------------------------------------------- VOC 2012


def encode_palette(values):
    image = Image.fromarray(np.asarray(values, np.uint8), "P")
    image.putpalette(range(256), "RGB")
    return encode(image)


def two_objects(first, second):
    """Masks of classes and of objects: two touching objects and void around them, 12 by 16."""
    classes, objects = (np.full((12, 16), 0, np.uint8) for _ in range(2))
    classes[1:11, 1:15] = objects[1:11, 1:15] = VOID
    classes[2:10, 2:8], objects[2:10, 2:8] = first, 1
    classes[2:10, 8:14], objects[2:10, 8:14] = second, 2
    return encode_palette(classes), encode_palette(objects)


@pytest.fixture
def voc_files():
    files = make_voc_files()
    picture = encode(np.full((12, 16, 3), 80, np.uint8), "JPEG")
    for number in (40, 41):  # of the official val split
        name = f"2007_{number:06}"
        files[f"JPEGImages/{name}.jpg"] = picture
        kinds = ("SegmentationClass", "SegmentationObject")
        for kind, mask in zip(kinds, two_objects(15, 12), strict=True):
            files[f"{kind}/{name}.png"] = mask
    return files


@pytest.fixture
def load(load_voc):
    return lambda source, name="voc2012_instances": load_voc(source, name)


def write_source(kind, tmp_path, files):
    if kind == "tar":
        return write_voc_tar(tmp_path / "a.tar", files)
    return write_files(tmp_path / "VOC2012", files)


def test_voc_objects_come_from_their_masks(load, tmp_path, voc_files):
    voc = load(write_source("tar", tmp_path, voc_files))
    assert {k: len(v) for k, v in voc.splits.items()} == {"train": 36, "validation": 4, "test": 6}
    example = voc.splits["test"][0]
    assert {key: (value.shape, value.dtype.name) for key, value in example.items()} == {
        "inputs": ((12, 16, 3), "uint8"),
        "label": ((12, 16), "uint8"),
        "classes": ((2,), "int32"),
    }
    assert example["classes"].tolist() == [15, 12]
    assert example["label"][5].tolist() == [0, VOID, *[1] * 6, *[2] * 6, VOID, 0]
    assert any("SegmentationObject" in note for note in voc.notes)
    assert "test: 8 objects in 6 pictures, 1.3 on average and 2 at most." in voc.notes
    assert voc.shape == (0, 0, 3) and voc.classes[15] == "person" and not voc.skipped
    assert len(set(np.unique(voc.splits["test"].labels))) == 3


def test_voc_without_objects_has_components(load, tmp_path, voc_files):
    files = {k: v for k, v in voc_files.items() if not k.startswith("SegmentationObject")}
    files["SegmentationClass/2007_000041.png"] = two_objects(15, 15)[0]
    # Training needs an object.
    for name in ("JPEGImages/2007_0000{}.jpg", "SegmentationClass/2007_0000{}.png"):
        files[name.format("00")] = files[name.format("41")]
    voc = load(write_source("folder", tmp_path, files))
    assert any("objects are connected components" in note for note in voc.notes)
    # The blocks of the other pictures have 6 pixels and are too small; 48 pixels are, too.
    assert [voc.splits["test"][i]["classes"].tolist() for i in range(3)] == [[], [15], []]
    assert set(np.unique(voc.splits["test"][0]["label"])) == {0, VOID}
    assert "test: 1 object in 6 pictures, 0.2 on average and 1 at most." in voc.notes


def test_voc_pictures_with_bad_objects_are_skipped(load, tmp_path, voc_files):
    objects = "SegmentationObject/2007_0000"
    voc_files["SegmentationClass/2007_000040.png"] = two_objects(15, 15)[0]
    voc_files[f"{objects}40.png"] = encode_palette(np.ones((12, 16)))
    voc_files[f"{objects}42.png"] = b"no picture"
    voc_files[f"{objects}43.png"] = encode_voc_mask(1, (8, 6))
    del voc_files[f"{objects}44.png"]
    voc = load(write_source("folder", tmp_path, voc_files))
    assert [file for file, _ in voc.skipped] == [
        f"JPEGImages/2007_0000{number}.jpg" for number in (40, 42, 43, 44)
    ]
    reasons = [reason for _, reason in voc.skipped]
    for reason, words in zip(
        reasons,
        ("the classes 0 and 15", "object mask cannot", "6 by 8", "No such file"),
        strict=True,
    ):
        assert words in reason
    assert len(voc.splits["test"]) == 2


def test_voc_without_a_usable_object_mask_is_an_error(load, tmp_path, voc_files):
    for name in voc_files:
        if name.startswith("SegmentationObject"):
            voc_files[name] = b"no picture"
    with pytest.raises(UserError, match=r"no picture of train .* Repair the object masks"):
        load(write_source("folder", tmp_path, voc_files))


def test_an_object_mask_that_goes_bad_is_named(load, tmp_path, voc_files):
    source = write_source("folder", tmp_path, voc_files)
    voc = load(source)
    path = source / "SegmentationObject/2007_000040.png"
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2007_000040\.png cannot be read any more"):
        voc.splits["test"][0]


def test_a_tar_unpacked_without_objects_is_completed(load, tmp_path, voc_files, capsys):
    """Versions before the masks of objects ended with the lists."""
    source = write_source("tar", tmp_path, voc_files)
    load(source, "voc2012")
    (mark,) = (tmp_path / "prepared").rglob("unpacked.txt")
    mark.unlink()
    for path in mark.parent.glob("SegmentationObject/*"):
        path.unlink()
    capsys.readouterr()
    assert load(source).splits["test"][0]["classes"].tolist() == [15, 12]
    assert "(once)" in capsys.readouterr().out


# ---------------------------------------------------------------- masks of one's own


def write_cells(root, count=20, objects=None):
    """Two touching cells of one class in each picture, which an object mask tells apart."""
    classes = np.zeros((12, 16), np.uint8)
    classes[2:10, 2:14] = 1
    numbers = np.where(np.arange(16) < 8, 1, 2).astype(np.uint8) * (classes > 0)
    files = {}
    for index in range(count):
        picture = np.full((12, 16, 3), index, np.uint8)
        files[f"images/{index:02}.png"] = encode(picture)
        files[f"masks/{index:02}.png"] = encode(classes)
        if objects:
            files[f"{objects}/{index:02}.png"] = encode(numbers.astype(np.uint8))
    return write_files(root, files)


@pytest.mark.parametrize("objects", [None, "objects", "Instances"])
def test_masks_of_ones_own_have_objects(load, tmp_path, objects):
    cells = load(write_cells(tmp_path / "cells", objects=objects), "mask_folder_instances")
    assert cells.name == "cells" and cells.classes == ["0", "1"] and cells.shape == (12, 16, 3)
    assert [len(source) for source in cells.splits.values()] == [14, 2, 4]
    example = cells.splits["train"][0]
    expected = [1] * 12 if objects is None else [1] * 6 + [2] * 6
    assert example["label"][5].tolist() == [0, 0, *expected, 0, 0]
    assert example["classes"].tolist() == [1] * max(expected)
    assert any("components" in note for note in cells.notes) == (objects is None)


def test_two_folders_of_objects_are_an_error(load, tmp_path):
    root = write_cells(tmp_path / "cells", objects="objects")
    write_cells(root, objects="instances")
    with pytest.raises(UserError, match="instances and objects"):
        load(root, "mask_folder_instances")


def test_masks_without_an_object_are_an_error(load, tmp_path):
    root = write_cells(tmp_path / "cells")
    for path in (root / "masks").iterdir():
        mask = np.zeros((12, 16), np.uint8)
        mask[2:4, 2:6] = 1
        path.write_bytes(encode(mask))
    with pytest.raises(UserError, match=r"no picture to train on has an object.* least 50 pixels"):
        load(root, "mask_folder_instances")


def test_a_run_notices_changed_masks(load, tmp_path):
    """Also where the masks of classes and of objects are the same files."""
    root = write_cells(tmp_path / "cells", objects="objects")
    seen = []
    for right in (9, 13):
        mask = np.zeros((12, 16), np.uint8)
        mask[2:10, 2:right] = 1
        for folder in ("masks", "objects"):
            (root / folder / "03.png").write_bytes(encode(mask))
        seen.append(compute_fingerprint(load(root, "mask_folder_instances")))
    assert describe_changes(*seen) == "1 file has another label (images/03.png)"


def test_real_voc_has_the_known_components(load, real_data):
    voc = load(real_data("voc2012/VOCdevkit"))
    notes = " ".join(voc.notes)
    assert "train: 631 objects in 160 pictures, 3.9 on average and 28 at most." in notes
    example = voc.splits["train"][0]
    numbers = set(np.unique(example["label"]).tolist()) - {0, VOID}
    assert numbers == set(range(1, len(example["classes"]) + 1))
