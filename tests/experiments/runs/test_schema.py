"""The JSON files of a run, read by everybody in one way: settings, summary, progress."""

import json
import os

import pytest
from finished_runs import config_with

from experiments.configs import odconv
from experiments.core.errors import UserError
from experiments.runs.folder import check_name, check_or_write_config, lock_workdir
from experiments.runs.schema import list_steps, read_config, read_summary

BEST = {"step": 4, "accuracy": 0.5, "loss": 1.0}


@pytest.fixture
def run(tmp_path):
    """The folder of an unfinished run with one checkpoint, which has the settings."""
    config = odconv.get_config("digits,smoke")
    progress = {"seconds": 1.0, "best": BEST, "early_stopping": None, "config": config.to_dict()}
    write(tmp_path / "checkpoints" / "4" / "progress" / "metadata", progress)
    write(tmp_path / "config.json", config.to_dict())
    return tmp_path


def write(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value))


def test_lost_settings_come_back_from_the_checkpoint(run, capsys):
    config = odconv.get_config("digits,smoke")
    (run / "config.json").unlink()
    other = odconv.get_config("digits,smoke")
    other.epochs = 7
    with pytest.raises(UserError, match="epochs was 2 and is now 7"):
        check_or_write_config(run, other)
    assert not (run / "config.json").exists()
    check_or_write_config(run, config)
    assert "config.json was missing" in capsys.readouterr().err
    assert read_config(run) == (read_config(run)[0], run / "config.json")
    # A damaged one is not replaced by itself.
    write(run / "config.json", "{")
    with pytest.raises(
        UserError, match="Delete it, and the settings that came with the checkpoints"
    ):
        check_or_write_config(run, config)


def test_settings_that_are_nowhere_are_not_made_up(run):
    """A run from before checkpoints had the settings."""
    write(run / "checkpoints" / "4" / "progress" / "metadata", {"seconds": 1.0, "best": BEST})
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json cannot be read: it is missing"):
        check_or_write_config(run, odconv.get_config("digits,smoke"))
    assert not (run / "config.json").exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"model": 5}, "model is not a group of settings"),
        ({"epochs": {}}, "epochs is not one setting"),
        ({"image_size": 1_000_000}, "image_size=1000000: choose 0 or more and 8192 or less"),
        ({"image_size": "8"}, "image_size=8 is not a whole number"),
        ({"image_size": None}, "image_size=None is not a whole number"),
        ({"batch_size": 1e9}, "is not a whole number"),
        ({"task": "cooking"}, "task=cooking: choose one of"),
        ({"data": {"name": 3}}, "data.name=3 is not a text"),
        ({"model": {"width": 10**9}}, "65536 or less"),
        ({"model": {"depth": 17}}, "choose one of 6, 10"),
        (
            {"conv": {"name": "odconv", "num_kernels": "4"}},
            "conv.num_kernels=4 is not a whole number",
        ),
        ({"conv": {"name": "odconv", "reduction": 1e-30}}, ""),
        ({"conv": {"name": "odconv", "num_kernels": {"x": 1}}}, "is in another setting"),
        ({"epochs.x": 1}, "has a point in it"),
        ({"conv": {"name": "odconv", "reduction": -1.0}}, "more than 0"),
        ({"normalise": {"mean": [0.1, 0.2]}}, "give 1 or 3"),
        ({"normalise": {"mean": ["a"]}}, "normalise.mean"),
    ],
)
def test_settings_of_others_are_bounded(run, setting, says):
    saved = json.loads((run / "config.json").read_text())
    for name, value in setting.items():
        both = isinstance(value, dict) and isinstance(saved.get(name), dict)
        saved[name] = saved[name] | value if both else value
    write(run / "config.json", saved)
    if not says:
        read_config(run)
        return
    with pytest.raises(UserError, match=says) as caught:
        read_config(run)
    assert str(caught.value).startswith(f"{run / 'config.json'} cannot be read: ")


def test_a_number_may_be_written_without_its_point(run):
    saved = json.loads((run / "config.json").read_text())
    saved["optimizer"]["learning_rate"] = 1
    write(run / "config.json", saved)
    rate = read_config(run)[0].optimizer.learning_rate
    assert rate == 1.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        ({"test": {}}, "it has no best"),
        ({"test": 3, "best": BEST}, "test is 3 instead of an object"),
        ({"test": {"accuracy": "high"}, "best": BEST}, "test.accuracy"),
        ({"test": {}, "best": {}}, "best has no step"),
        ({"test": {}, "best": {"step": "4"}}, "best.step"),
        ({"test": {}, "best": BEST, "classes": [1]}, r"classes\[0\] is 1"),
        ({"test": {}, "best": BEST, "shape": [8, 8, 1, 1]}, "shape has 4 entries"),
        ({"test": {}, "best": BEST, "shape": [8, -8, 1]}, r"shape\[1\] is -8"),
        ({"test": {}, "best": BEST, "seconds": "long"}, "seconds"),
    ],
)
def test_a_wrong_summary_says_what_is_wrong(tmp_path, summary, says):
    write(tmp_path / "summary.json", summary)
    with pytest.raises(UserError, match=says):
        read_summary(tmp_path, needed=("test", "best"))


def test_steps_are_plain_numbers(tmp_path):
    assert list_steps(tmp_path) == [] == list_steps(tmp_path / "nowhere")
    for name in ("4", "12", "12.orbax-checkpoint-tmp", "²", "x", "-3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert list_steps(tmp_path) == [4, 12]


# ---------------------------------------------------------------- the place of a run


@pytest.mark.parametrize("name", ["a b", "ü∞", "a\nb", "~", "a]", "{a,b}", "a#b", "%20"])
def test_a_run_may_have_such_a_name(tmp_path, name):
    check_name(tmp_path / name, writing=True)


@pytest.mark.parametrize(
    "name", ["birds [2024]", "a*", "a?", "a\\b", os.fsdecode(b"a\xff"), "gs:", "y/" * 2000]
)
@pytest.mark.parametrize("below", ["", "/run"])
def test_a_name_that_orbax_misreads_is_refused_before_anything_is_written(tmp_path, name, below):
    with pytest.raises(UserError, match="rename the folder, or choose another"):
        with lock_workdir(tmp_path / f"{name}{below}"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_found_before_training(tmp_path):
    (tmp_path / "one" / "confusion.csv").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    os.mkfifo(tmp_path / "two" / "metrics.jsonl")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "figures").touch()
    for name, says in {"one": "confusion.csv", "two": "metrics.jsonl", "three": "figures"}.items():
        with pytest.raises(UserError, match=f"{says} is not a .*: move it away"):
            with lock_workdir(tmp_path / name):
                pass


def test_the_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="cannot be used"):
        with lock_workdir(tmp_path / "run"):
            pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_config_of_every_task_is_read_as_it_was_written(tmp_path):
    for task in ("classification", "acgan", "reconstruction"):
        config = config_with(task=task)
        write(tmp_path / "config.json", config.to_dict())
        assert read_config(tmp_path)[0].to_dict() == config.to_dict()
