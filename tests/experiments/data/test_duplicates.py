import numpy as np
from picture_files import encode_grey, write_files
from PIL import Image

from experiments import data
from experiments.data import duplicates
from experiments.data.views import Arrays, Chain, Relabelled, Subset, flatten


def write(folder, values):
    write_files(
        folder, {f"{number}.png": encode_grey(value) for number, value in enumerate(values)}
    )


def find_notes(dataset):
    return [note for note in dataset.notes if "with the same content" in note]


def test_copied_files_are_noticed(make_config, tmp_path):
    root = tmp_path / "pets"
    write(root / "train" / "cat", range(10))
    write(root / "train" / "dog", range(100, 110))
    write(root / "test" / "cat", (50, 51))
    write(root / "test" / "dog", (150, 107))
    (root / "test" / "cat" / "copy.png").write_bytes(encode_grey(3))
    pets = data.load(make_config(name="folder", source=root, validation=0.0), 0)
    (note, other) = find_notes(pets)
    assert note.startswith("2 of the 5 examples of test are also in train")
    assert "test/cat/copy.png is train/cat/3.png" in note
    assert other.startswith("2 of the 5 examples of test are also in validation")  # which is train
    (root / "test" / "cat" / "copy.png").unlink()
    (root / "test" / "dog" / "1.png").unlink()
    assert not find_notes(data.load(make_config(name="folder", source=root, validation=0.0), 0))


def test_copied_pictures_with_masks_are_noticed(make_config, tmp_path):
    for split, values in (("train", range(20)), ("test", (40, 5))):
        write(tmp_path / "streets" / split / "images", values)
        (tmp_path / "streets" / split / "masks").mkdir()
        for number in range(len(values)):
            mask = Image.fromarray(np.array([[0] * 3 + [1 + number % 2] * 3] * 4, np.uint8))
            mask.save(tmp_path / "streets" / split / "masks" / f"{number}.png")
    streets = data.load(make_config(name="mask_folder", source=tmp_path / "streets"), 0)
    (note,) = find_notes(streets)
    assert "test/images/1.png is train/images/5.png" in note


def test_a_picture_in_two_classes_is_noticed(make_config, tmp_path):
    write(tmp_path / "pets" / "cat", range(10))
    write(tmp_path / "pets" / "dog", range(8, 18))
    config = make_config(name="folder", source=tmp_path / "pets", validation=0.0, test=0.0)
    notes = [note for note in data.load(config, 0).notes if "different labels" in note]
    assert len(notes) == 1  # all splits are train itself
    assert notes[0].startswith("train has the same content with different labels 2 times")
    assert "cat/8.png and dog/0.png" in notes[0] or "cat/9.png and dog/1.png" in notes[0]


def test_copied_series_are_noticed(make_config, tmp_path):
    rows = ["1\t1\t2\t3\t5", "2\t4\t2\t1\t0", "1\t0\t1\t0\t2", "2\t9\t4\t4\t1"]
    (tmp_path / "Toy_TRAIN.tsv").write_text("\n".join(rows))
    (tmp_path / "Toy_TEST.tsv").write_text("2\t4.0\t2.00\t1e0\t0\n1\t7\t7\t2\t1\n")
    toy = data.load(make_config(name="ucr", source=tmp_path, validation=0.0), 0)
    assert "Toy_TEST.tsv, line 1 is Toy_TRAIN.tsv, line 2)" in find_notes(toy)[0]


def test_copies_in_folds_are_noticed(make_config, tmp_path):
    write(tmp_path / "pets" / "cat", [*range(9), 0])
    write(tmp_path / "pets" / "dog", range(100, 110))
    write(tmp_path / "pets" / "fox", [200] * 10)
    fields = {"name": "folder", "source": tmp_path / "pets", "validation": 0.0, "folds": 10}
    counts = []
    for fold in range(10):
        config = make_config(**fields, fold=fold, classes="cat,dog")
        notes = find_notes(data.load(config, 0))
        counts.append(sum("of test is also in train" in note for note in notes))
    assert sum(counts) == 2  # The two copies are in two folds, and each meets the other once.


def test_shared_examples_are_not_copies():
    source = Arrays(np.arange(6), np.zeros(6, int))
    assert not duplicates.describe_duplicates(
        {"train": source, "validation": Subset(source, [1, 2])}
    )
    again = Arrays(np.arange(6), np.zeros(6, int))
    (note,) = duplicates.describe_duplicates({"train": source, "test": Subset(again, [4, 5])})
    assert "2 of the 2 examples of test" in note and "example 4 is example 4" in note


def test_flatten_resolves_nested_views():
    one, two = (Arrays(np.arange(n), np.zeros(n, int)) for n in (5, 3))
    view = Relabelled(Subset(Chain([one, Subset(two, [2, 0])]), [6, 0, 5, 3]), [0, 2, 3], {0: 0})
    bases, owners, positions = flatten(view)
    assert bases == [one, two]
    assert owners.tolist() == [1, 1, 0] and positions.tolist() == [0, 2, 3]
