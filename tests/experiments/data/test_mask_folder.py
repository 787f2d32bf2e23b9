import numpy as np
import pytest
from picture_files import rotate
from PIL import Image

from experiments import data
from experiments.core.errors import UserError
from experiments.data.masks import decode_mask
from experiments.data.views import flatten


def write_pair(folder, name, index, images="images", masks="masks", size=(4, 6), suffix="png"):
    """A grey picture that tells its class, and a mask that is half background, half that class."""
    picture = np.full((*size, 3), 20 * index, np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = index
    mask[0, 0] = 255
    for where, values, kind in ((images, picture, suffix), (masks, mask, "png")):
        (folder / where).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / where / f"{name}.{kind}")


def write_pairs(folder, count=20, **options):
    for number in range(count):
        write_pair(folder, f"scene {number}", 1 + number % 2, **options)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "streets"


@pytest.fixture
def load(make_config, root):
    def load(**fields):
        return data.load(make_config(name="mask_folder", source=root, **fields), 0)

    return load


def sizes(dataset):
    return [len(dataset.splits[split]) for split in ("train", "validation", "test")]


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images", "masks"), ("JPEGImages", "SegmentationClass"), ("imgs", "Annotations")],
)
def test_pair_of_folders_is_split_here(load, root, images, masks):
    write_pairs(root, images=images, masks=masks)
    streets = load()
    assert (streets.name, streets.shape) == ("streets", (4, 6, 3))
    assert streets.classes == ["0", "1", "2"]
    assert sizes(streets) == [14, 2, 4]
    for source in streets.splits.values():
        labels = []
        for example in (source[i] for i in range(len(source))):
            assert example["inputs"].shape == (4, 6, 3) and example["inputs"].dtype == np.uint8
            assert example["label"].shape == (4, 6) and example["label"].dtype == np.uint8
            index = example["inputs"][0, 0, 0] // 20
            assert example["label"][0].tolist() == [255, index, index, 0, 0, 0]
            labels.append(index)
        assert labels.count(1) == labels.count(2)  # Stratified.
    assert any("classes are 0 to 2" in note for note in streets.notes)


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_split_folders_are_used(load, root, validation):
    for split, count in (("", 10), (validation, 3), ("test", 2)):
        write_pairs(root / split, count)
    assert sizes(load()) == [10, 3, 2]  # A pair in the root is for training.
    for kind in ("images", "masks"):
        (root / "train").mkdir(exist_ok=True)
        (root / kind).rename(root / "train" / kind)
    assert sizes(load()) == [10, 3, 2]


def test_names_come_from_classes_txt(load, root):
    write_pairs(root)
    write_pair(root, "strange", 9)
    (root / "classes.txt").write_text("road\n house \n\ntree\ncar\n")
    streets = load()
    assert streets.skipped == [
        ("images/strange.png", "its mask holds 9, but classes are 0 to 3 (255: none)")
    ]
    assert streets.classes == ["road", "house", "tree", "car"]
    assert "train has no pixel of car." in streets.notes


def test_unpaired_files_are_listed(load, root):
    write_pairs(root)
    (root / "masks" / "scene 0.png").unlink()
    (root / "images" / "scene 1.png").unlink()
    (root / "images" / "scene 2.png").write_bytes(b"no picture")
    Image.new("RGB", (6, 4)).save(root / "images" / "scene 3.bmp")
    Image.new("RGB", (6, 4)).save(root / "masks" / "scene 4.png")
    (root / "masks" / "scene 5.json").write_text("{}")
    (root / "images" / ".hidden").write_text("hidden")
    streets = load()
    skipped = dict(streets.skipped)
    assert len(skipped) == len(streets.skipped) == 5
    assert "no mask masks/scene 0.png" in skipped["images/scene 0.png"]
    assert "images has no picture of this name" in skipped["masks/scene 1.png"]
    assert "not a picture" in skipped["images/scene 2.png"]
    assert "scene 3.bmp has the same name" in skipped["images/scene 3.png"]
    assert "RGB colours" in skipped["images/scene 4.png"]
    assert sum(sizes(streets)) == 16


def test_binary_mask_of_0_and_255_is_explained(load, root):
    write_pairs(root)
    for path in (root / "masks").iterdir():
        Image.fromarray(np.array([[0, 255]] * 4, np.uint8).repeat(3, axis=1)).save(path)
    for text in (None, "background\ncell\n", "background 0 0 0\ncell 9 9 9\nignore 255 255 255\n"):
        if text:
            (root / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=r"only class 0; at least two classes.*write 1 instead"):
            load()


def test_training_masks_need_two_classes(load, root):
    for split in ("train", "test"):
        write_pairs(root / split)
    for path in (root / "train" / "masks").iterdir():
        Image.new("L", (6, 4), 2).save(path)
    with pytest.raises(UserError, match="the masks to train on have only class 2"):
        load()


@pytest.mark.parametrize("lacking", ["images", "masks"])
@pytest.mark.parametrize("split", ["", "train"])
def test_half_a_pair_is_refused(load, root, lacking, split):
    there = "masks" if lacking == "images" else "images"
    (root / split / there).mkdir(parents=True)
    what = "pictures" if lacking == "images" else "masks"
    with pytest.raises(UserError, match=f"has no folder of {what}.*--config.data.source"):
        load()


def test_other_layouts_are_refused(load, root, make_config):
    with pytest.raises(UserError, match="No folder of pictures and masks is set"):
        data.load(make_config(name="mask_folder"), 0)
    with pytest.raises(UserError, match="streets is not a folder"):
        load()
    root.mkdir()
    with pytest.raises(UserError, match="has no folders of pictures and masks"):
        load()
    write_pairs(root / "test")
    with pytest.raises(UserError, match="has test but no folder train"):
        load()
    (root / "train").mkdir()
    with pytest.raises(UserError, match="train has neither pictures nor masks"):
        load()


def test_ambiguous_folders_are_refused(load, root):
    write_pairs(root)
    (root / "labels").mkdir()
    with pytest.raises(UserError, match="labels and masks for masks"):
        load()
    (root / "labels").rmdir()
    write_pairs(root / "val")
    write_pairs(root / "valid")
    with pytest.raises(UserError, match="val and valid for the validation split"):
        load()


def test_folders_without_a_usable_pair_say_why(load, root):
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    with pytest.raises(UserError, match=r"no usable pair of a picture and a mask\. Give"):
        load()
    Image.new("RGB", (6, 4)).save(root / "images" / "a.png")
    Image.new("L", (6, 4)).save(root / "masks" / "a_mask.png")
    with pytest.raises(UserError, match=r"no usable pair.*skipped 2 files, such as masks/a_mask"):
        load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"road\n", "names 1 classes"),
        (b"road\nhouse\nroad\n", "has road more than once"),
        (b"r\xe9seau\nhouse\n", "save it as UTF-8"),
    ],
)
def test_bad_class_lists_are_refused(load, root, text, message):
    write_pairs(root)
    (root / "classes.txt").write_bytes(text)
    with pytest.raises(UserError, match=message):
        load()


def paint(root, name, indices, palette):
    """Replaces the mask of a pair by one with a palette."""
    image = Image.fromarray(np.repeat([indices], 4, axis=0).astype(np.uint8), "P")
    image.putpalette(sum(palette, ()), "RGB")
    image.save(root / "masks" / f"scene {name}.png")


BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (
            (BLACK, RED, GREEN),
            (BLACK, GREEN, RED),
            "index 1 is the colour 255 0 0 in .*scene 0.png",
        ),
        ((BLACK, WHITE), (WHITE, BLACK), "index 0 is the colour 0 0 0 in .*scene 0.png"),
        ((RED, BLACK), (GREEN, GREEN, BLACK), "index 0 is the colour 255 0 0"),
    ],
)
def test_palettes_in_different_orders_are_refused(load, root, one, other, reason):
    write_pairs(root)
    for number in range(20):
        palette = other if number == 7 else one
        paint(root, number, np.arange(6) % len(palette), palette)
    with pytest.raises(UserError, match=f"{reason}.*scene 7.png.*classes.txt"):
        load()


def test_a_colour_with_two_numbers_is_refused(load, root):
    write_pairs(root)
    palette = (BLACK, RED, RED)
    for number in range(20):
        paint(root, number, [0, 1 + (number == 7)] * 3, palette)
    with pytest.raises(
        UserError, match=r"the colour 255 0 0 is index 1 in .* and 2 in .*scene 7.png"
    ):
        load()


def test_classes_with_colours_map_masks_of_any_kind(load, root):
    write_pairs(root)
    (root / "classes.txt").write_text(
        "road 0 0 0\nfast car 255 0 0\nignore 0 255 0\ntree 128 128 128\n"
    )
    colours = np.array([BLACK, RED, GREEN, (128, 128, 128)], np.uint8)
    kinds = [RED, BLACK], [BLACK, RED]
    for number in range(18):  # palettes in two orders
        paint(root, number, [number % 2, 1 - number % 2] * 3, kinds[number % 2])
    Image.fromarray(colours[[[0, 1, 2, 3, 3, 3]] * 4]).save(root / "masks" / "scene 18.png")
    Image.fromarray(np.array([[0, 128, 7, 0, 0, 0]] * 4, np.uint8)).save(
        root / "masks" / "scene 19.png"
    )
    streets = load(validation=0.0)
    assert streets.classes == ["road", "fast car", "tree"]
    assert streets.skipped == [
        (
            "images/scene 19.png",
            "its mask cannot be read: it holds the colour 7 7 7, which is of no class",
        )
    ]
    rows = {
        tuple(source[i]["label"][0].tolist())
        for source in streets.splits.values()
        for i in range(len(source))
    }
    assert rows == {(1, 0) * 3, (0, 1, 255, 2, 2, 2)}


def test_the_meaning_of_colours_is_in_the_digest_of_a_mask(load, root):
    write_pairs(root)
    for number in range(20):
        paint(root, number, [0, 1] * 3, (BLACK, RED))
    seen = []
    for text in ("road 0 0 0\ncar 255 0 0\n", "car 255 0 0\nroad 0 0 0\n"):
        (root / "classes.txt").write_text(text)
        seen.append(set(flatten(load().splits["train"])[0][0].labels.tolist()))
    assert len(seen[0] | seen[1]) == 2


def test_levels_of_grey_are_no_class_numbers(load, root):
    write_pairs(root)
    for path in (root / "masks").iterdir():
        Image.fromarray(np.array([[0, 128] * 3] * 4, np.uint8)).save(path)
    with pytest.raises(
        UserError, match=r"only 0, 128, which would be 129 classes.*class128 128 128 128"
    ):
        load()
    (root / "classes.txt").write_text("ground 0 0 0\nroof 128 128 128\n")
    assert load().classes == ["ground", "roof"]


def test_masks_are_turned_upright_like_pictures(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / "a.png", exif=rotate(6))
    np.testing.assert_array_equal(decode_mask(tmp_path / "a.png"), np.rot90(values, -1))
