import csv

import numpy as np
import pytest

from experiments.core.errors import UserError
from experiments.data import folds, splits
from experiments.data.dataset import Dataset
from experiments.data.views import Arrays, Subset

CLASSES = ["ash", "birch", "cedar"]


def source(labels, first=0):
    """Examples whose input is a number of their own."""
    labels = np.asarray(labels)
    return Arrays(np.arange(first, first + len(labels)), labels)


def archive(config, train=(0, 1, 2) * 20, test=(0, 1, 2) * 10):
    """A data set with splits of its own, as the readers make it."""
    pools = [splits.Pool(source(train), np.array(train))]
    pools.append(splits.Pool(source(test, first=100), np.array(test)))
    parts, notes = splits.make_splits("trees", config, 0, train=pools[0], test=pools[1])
    return Dataset("trees", parts, CLASSES, (4, 1), ["Read from files.", *notes])


def inputs(examples):
    return [int(examples[i]["inputs"]) for i in range(len(examples))]


def labels(examples):
    return [int(examples[i]["label"]) for i in range(len(examples))]


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_pool_has_every_example_once_in_file_order(make_config, validation):
    dataset = archive(make_config(validation=validation))
    everything = folds.pool_splits(dataset)
    assert inputs(everything.source) == [*range(60), *range(100, 130)]
    assert labels(everything.source) == everything.labels.tolist() == [0, 1, 2] * 30
    where = dict(zip(inputs(everything.source), everything.origins, strict=True))
    assert all(where[number] == "test" for number in range(100, 130))
    for split in ("train", "validation"):
        if validation or split == "train":
            assert all(where[number] == split for number in inputs(dataset.splits[split]))


def test_pool_resolves_nested_views(make_config):
    everything = splits.Pool(source([0, 1] * 50), np.array([0, 1] * 50))
    parts, _ = splits.make_splits("set", make_config(limit=20), 0, train=everything)
    pool = folds.pool_splits(Dataset("set", parts, ["a", "b"], (4, 1)))
    shown = {number for part in parts.values() for number in inputs(part)}
    assert inputs(pool.source) == sorted(shown)
    nested = Subset(Subset(source([0, 1] * 4), [6, 4, 2, 0]), [3, 1])
    parts = {"train": nested, "validation": nested, "test": source([1], first=9)}
    assert inputs(folds.pool_splits(Dataset("set", parts, ["a", "b"], (4, 1))).source) == [0, 4, 9]


def test_folds_are_stratified_and_equal_in_size():
    given = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [23, 40, 11]))
    assignment, notes = folds.assign_folds(given, 10, seed=0)
    counts = np.array([np.bincount(given[assignment == fold], minlength=3) for fold in range(10)])
    assert counts.sum(0).tolist() == [23, 40, 11] and not notes
    assert np.ptp(counts, axis=0).max() <= 1 and np.ptp(counts.sum(1)) <= 1


def test_seed_decides_the_folds():
    given = np.repeat([0, 1, 2], 20)
    one, _ = folds.assign_folds(given, 5, seed=1)
    np.testing.assert_array_equal(one, folds.assign_folds(given, 5, seed=1)[0])
    np.testing.assert_array_equal(one, folds.assign_folds(given, 5, seed=1 + 2**32)[0])
    assert (one != folds.assign_folds(given, 5, seed=2)[0]).any()
    # Names of classes do not.
    np.testing.assert_array_equal(one, folds.assign_folds(given + 7, 5, seed=1)[0])


def test_small_classes_are_noted():
    given = np.repeat([0, 1, 2], [30, 4, 1])
    assignment, notes = folds.assign_folds(given, 10, seed=0)
    assert np.bincount(assignment[given == 1]).max() == 1
    assert np.ptp(np.bincount(assignment, minlength=10)) <= 1
    assert len(notes) == 2
    assert "2 of 3 classes have fewer than 10" in notes[0] and "1 of 3 classes" in notes[1]


@pytest.mark.parametrize(("given", "number"), [([0, 0, 1], 1), ([0, 0, 1], 3), ([], 2)])
def test_impossible_numbers_of_folds_are_refused(given, number):
    with pytest.raises(
        UserError, match=f"{len(given)} examples cannot be divided into {number} folds"
    ):
        folds.assign_folds(np.array(given), number, seed=0)


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_each_example_is_tested_in_one_fold(make_config, validation):
    config = make_config(validation=validation)
    dataset = archive(config)
    everything = folds.pool_splits(dataset)
    assignment, _ = folds.assign_folds(everything.labels, 9, seed=0)
    tested = []
    for fold in range(9):
        each = folds.make_fold_dataset(dataset, everything, assignment, fold, config, seed=0)
        train, held, test = (inputs(each.splits[s]) for s in ("train", "validation", "test"))
        assert (len(train), len(held), len(test)) == ((64, 16, 10) if validation else (80, 80, 10))
        assert set(train) | set(held) | set(test) == set(inputs(everything.source))
        assert not set(test) & {*train, *held} and (train == held or not set(train) & set(held))
        assert np.ptp(np.bincount(labels(each.splits["train"]))) <= 1
        tested += test
        # Views, and nothing but the splits is new.
        assert all(isinstance(each.splits[split], Subset) for split in each.splits)
        assert (each.name, each.classes, each.shape) == ("trees", CLASSES, (4, 1))
        assert any(f"fold {fold} of 9" in note and "10 of the 90" in note for note in each.notes)
        assert len(each.notes) == len(set(each.notes)) and "Read from files." in each.notes
    assert sorted(tested) == inputs(everything.source)


def test_unknown_fold_is_refused(make_config):
    dataset = archive(make_config())
    everything = folds.pool_splits(dataset)
    assignment, _ = folds.assign_folds(everything.labels, 5, seed=0)
    with pytest.raises(UserError, match=r"no fold 5: the folds are numbered from 0 to 4"):
        folds.make_fold_dataset(dataset, everything, assignment, 5, make_config(), seed=0)


@pytest.fixture
def written(make_config, tmp_path):
    everything = folds.pool_splits(archive(make_config(validation=0.0)))
    assignment, _ = folds.assign_folds(everything.labels, 5, seed=0)
    path = tmp_path / "new" / "folds.csv"
    folds.write_folds(path, everything, assignment, CLASSES)
    return path, everything, assignment


def test_folds_are_written_and_read_back(written, make_config):
    path, everything, assignment = written
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["example", "split", "label", "fold"] and len(rows) == 90
    assert rows[0]["split"] == "train" and rows[0]["label"] == "ash"
    assert (rows[61]["example"], rows[61]["split"], rows[61]["label"]) == ("61", "test", "birch")
    assert [int(row["fold"]) for row in rows] == assignment.tolist()
    assert [file.name for file in path.parent.iterdir()] == ["folds.csv"]
    again = folds.read_folds(path, everything, CLASSES)
    np.testing.assert_array_equal(again, assignment)
    assert again.dtype == assignment.dtype
    # Another share for validation is not other data.
    other = folds.pool_splits(archive(make_config(validation=0.3)))
    np.testing.assert_array_equal(folds.read_folds(path, other, CLASSES), assignment)


def test_folds_of_other_data_are_refused(written, make_config):
    path, everything, _ = written
    fewer = folds.pool_splits(archive(make_config(), train=(0, 1, 2) * 19))
    with pytest.raises(UserError, match="about other data: it has 90 examples and the data 87"):
        folds.read_folds(path, fewer, CLASSES)
    other = folds.pool_splits(archive(make_config(), train=(0, 1, 2) * 19 + (0, 2, 1)))
    with pytest.raises(UserError, match="line 60 has the label 'birch' and the data 'cedar'"):
        folds.read_folds(path, other, CLASSES)
    with pytest.raises(UserError, match="line 2 has the label 'ash' and the data 'oak'"):
        folds.read_folds(path, everything, ["oak", *CLASSES[1:]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "cannot be used"),
        ("index,fold\n0,1\n", "first line is not example,split,label,fold"),
        ("example,split,label,fold\n0,train,ash,x\n", "cannot be used"),
        ("example,split,label,fold\n0,train\n", "cannot be used"),
        ("example,split,label,fold\n0,train,ash,0\n1,train,ash,2\n", "without a gap"),
    ],
)
def test_damaged_folds_are_refused(written, text, message):
    path, everything, _ = written
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        folds.read_folds(path, everything, CLASSES)
    assert str(path) in str(error.value) and "Delete it" in str(error.value)
