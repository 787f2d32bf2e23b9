import numpy as np
import pytest

from experiments import data
from experiments.core.errors import UserError
from experiments.data import paths


def test_digits(make_config):
    digits = data.load(make_config(), seed=0)
    assert {k: len(v) for k, v in digits.splits.items()} == {
        "train": 1258,
        "validation": 180,
        "test": 359,
    }
    assert digits.shape == (8, 8, 1) and digits.classes == [str(d) for d in range(10)]
    example = digits.splits["train"][0]
    assert example["inputs"].dtype == np.uint8 and example["inputs"].shape == (8, 8, 1)
    assert example["label"].dtype == np.int32
    values = {int(v) for i in range(200) for v in np.unique(digits.splits["train"][i]["inputs"])}
    assert len(values) == 17 and max(values) == 255


def test_the_seed_decides_the_split(make_config):
    first, same, other = (data.load(make_config(), seed=s).splits["test"] for s in (0, 0, 1))
    np.testing.assert_array_equal(first.indices, same.indices)
    assert set(first.indices) != set(other.indices)


def test_unknown_data_sets_are_refused(make_config):
    with pytest.raises(UserError, match=r"set tinyimagenet; did you mean 'tiny_imagenet'\?"):
        data.load(make_config(name="tinyimagenet"), seed=0)
    with pytest.raises(
        UserError, match=r"set birds; there are digits, .*folder, mask_folder, tfds"
    ):
        data.load(make_config(name="birds"), seed=0)


def test_data_dir_takes_config_then_environment(make_config, monkeypatch, tmp_path):
    monkeypatch.setenv("DYN_DATA_DIR", str(tmp_path / "variable"))
    assert paths.get_data_dir(make_config(dir="")) == tmp_path / "variable"
    assert paths.get_data_dir(make_config(dir=tmp_path / "field")) == tmp_path / "field"
    monkeypatch.delenv("DYN_DATA_DIR")
    assert paths.get_data_dir(make_config(dir="")).parts[-2:] == (".cache", "dyn")


def test_some_classes_are_renumbered(make_config):
    def list_labels(source):
        return [int(source[i]["label"]) for i in range(len(source))]

    everything, chosen = data.load(make_config(), 0), data.load(make_config(classes="7,3"), 0)
    assert list(chosen.classes) == ["7", "3"]
    for split, source in chosen.splits.items():
        labels, all_labels = list_labels(source), list_labels(everything.splits[split])
        assert set(labels) == {0, 1}
        assert labels.count(0) == all_labels.count(7) and labels.count(1) == all_labels.count(3)
    with pytest.raises(UserError, match="eleven"):
        data.load(make_config(classes="7,eleven"), 0)
