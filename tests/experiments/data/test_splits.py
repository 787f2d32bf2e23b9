import numpy as np
import pytest

from experiments.core.errors import UserError
from experiments.data import splits
from experiments.data.views import Arrays


def pool(labels):
    labels = np.asarray(labels)
    return splits.Pool(Arrays(np.arange(len(labels)), labels), labels)


def inputs(source):
    return [int(source[i]["inputs"]) for i in range(len(source))]


def test_stratified_split_keeps_the_proportions():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    rest, part, notes = splits.split_stratified(labels, 0.2, seed=3)
    assert np.bincount(labels[part]).tolist() == [10, 6, 4]
    assert sorted([*rest, *part]) == list(range(100)) and not notes


def test_single_examples_stay_in_train():
    labels = np.array([0] * 10 + [1] * 10 + [2])
    rest, _, notes = splits.split_stratified(labels, 0.2, seed=0)
    assert 20 in rest and "only one example" in notes[0]


def test_small_shares_are_raised():
    rest, part, notes = splits.split_stratified(np.repeat(np.arange(10), 4), 0.05, seed=0)
    assert (len(rest), len(part)) == (30, 10) and "10 examples instead of 2" in notes[0]


def test_limit_keeps_the_proportions():
    labels = np.repeat([0, 1, 2], [60, 30, 1])
    kept = splits.limit_stratified(labels, 9, seed=0)
    assert np.bincount(labels[kept]).tolist() == [6, 3]
    assert len(splits.limit_stratified(labels, 0, seed=0)) == 91


def test_shares_are_of_the_whole_pool(make_config):
    parts, notes = splits.make_splits("set", make_config(), 0, train=pool([0, 1] * 50))
    assert [len(parts[s]) for s in ("train", "validation", "test")] == [70, 10, 20]
    seen = sorted(value for part in parts.values() for value in inputs(part))
    assert seen == list(range(100)) and len(notes) == 2


def test_own_splits_are_kept(make_config):
    parts, notes = splits.make_splits(
        "set", make_config(limit=6), 0, train=pool([0, 1] * 20), test=pool([0, 1] * 4)
    )
    assert [len(parts[s]) for s in ("train", "validation", "test")] == [6, 4, 6]
    assert sum("config.data.limit" in note for note in notes) == 2


def test_no_share_uses_the_train_split(make_config):
    parts, notes = splits.make_splits(
        "set", make_config(validation=0.0), 0, train=pool([0, 1] * 5), test=pool([0, 1])
    )
    assert inputs(parts["validation"]) == inputs(parts["train"])
    assert "validation is the train split itself" in notes[0]


@pytest.mark.parametrize(
    ("fields", "labels", "message"),
    [
        ({"validation": 1.5}, [0, 1] * 5, "from 0 up to"),
        ({"validation": 0.6, "test": 0.5}, [0, 1] * 5, "leave nothing to train on"),
        ({}, [0, 1, 2], "too few"),
    ],
)
def test_impossible_splits_are_refused(make_config, fields, labels, message):
    with pytest.raises(UserError, match=message):
        splits.make_splits("set", make_config(**fields), 0, train=pool(labels))
