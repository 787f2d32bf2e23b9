import csv

import pytest
from picture_files import encode_grey, write_classes

from experiments import data
from experiments.configs import common
from experiments.core.errors import UserError
from experiments.data import Dataset
from experiments.data.views import Subset
from experiments.train.loop import train


def dataset(used, skipped, shown=None):
    every = [{}] * used
    half = Subset(every, range(used if shown is None else shown))
    return Dataset("pets", {"train": half, "test": half}, ["a"], (4, 4, 3), (), skipped)


@pytest.mark.parametrize(
    ("used", "skipped", "share", "stops"),
    [
        (90, 10, 0.1, False),
        (89, 11, 0.1, True),
        (5, 0, 0.0, False),
        (99, 1, 0.0, True),
        (1, 9, 1.0, False),
    ],
)
def test_too_many_skipped_files_stop_a_run(used, skipped, share, stops):
    pets = dataset(used, [("cat/1.png", "truncated")] * skipped)
    if not stops:
        return data.check_skipped(pets, share)
    says = rf"{skipped} of {used + skipped} files or series .*cat/1.png: truncated.*--config.data.max_skipped"
    with pytest.raises(UserError, match=says):
        data.check_skipped(pets, share)


def test_limit_does_not_change_the_skipped_share():
    pets = dataset(95, [("cat/1.png", "truncated")] * 5, shown=10)
    data.check_skipped(pets, 0.05)


def test_stopped_run_lists_skipped_files(tmp_path):
    write_classes(tmp_path / "pets")
    for number in range(5):
        (tmp_path / "pets" / "cat" / f"{number}.png").write_bytes(b"")
    config = common.get_config("folder,smoke")
    config.name, config.data.source = "base", str(tmp_path / "pets")
    with pytest.raises(UserError, match=r"5 of 20 files .*skipped\.csv lists them") as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    with open(tmp_path / "run" / "skipped.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [[f"cat/{number}.png", "the file is empty"] for number in range(5)]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_different_sizes_need_an_image_size(tmp_path):
    write_classes(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "tall.png").write_bytes(encode_grey(0, size=(6, 5)))
    config = common.get_config("folder,smoke")
    config.name, config.data.source, config.image_size = "base", str(tmp_path / "pets"), 0
    with pytest.raises(UserError, match=r"differ in size; .*--config\.image_size=PIXELS"):
        train(config, tmp_path / "run")
    pets = data.load(config.data, 0)
    assert pets.shape == (0, 0, 3) and data.check_sizes(pets, 64) is None
