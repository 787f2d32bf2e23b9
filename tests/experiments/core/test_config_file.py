"""Config files, which people write themselves, and the settings in a config."""

import pytest
from ml_collections import ConfigDict

from experiments.core.config_file import find_setting, list_configs, load_config_file
from experiments.core.errors import UserError


def test_a_config_file_is_run_once_and_gets_its_argument(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from pathlib import Path\nfrom ml_collections import ConfigDict\n"
        "ran = Path(__file__).with_name('ran')\n"
        "ran.write_text(ran.read_text() + 'x' if ran.exists() else 'x')\n"
        "def get_config(argument='usual'):\n    return ConfigDict({'argument': argument})\n"
    )
    assert load_config_file(f"{file}:a,b").argument == "a,b"
    assert (tmp_path / "ran").read_text() == "x"
    assert load_config_file(str(file)).argument == "usual"
    assert list_configs(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"def get_config(:", "c.py fails: SyntaxError"),
        (b"\xff\x00", "c.py"),
        (b"import nowhere_to_be_found", "nowhere_to_be_found"),
        (b"def get_config(argument=''):\n    return 1 / 0", "division by zero"),
        (b"def get_config(argument=''):\n    return 1", "instead of a ConfigDict"),
        (b"", "has no get_config"),
    ],
)
def test_a_file_that_is_not_a_config_is_answered(tmp_path, content, says):
    (tmp_path / "c.py").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_config_file(str(tmp_path / "c.py"))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("{}/odcon.py", "did you mean 'odconv'"),
        ("{}/odconv", "did you mean 'odconv'"),
        ("{}", "there are odconv"),
        ("/nowhere/odconv.py", "holds no configs"),
        ("", "no config"),
        ("x" * 400 + ".py", "no config"),
    ],
)
def test_a_file_that_is_not_there_is_answered(tmp_path, place, says):
    (tmp_path / "odconv.py").write_text("")
    with pytest.raises(UserError, match=says):
        load_config_file(place.format(tmp_path))


@pytest.mark.parametrize("place", ["odconv", "odconv.py", "experiments/configs/odconv.py"])
def test_a_config_of_the_package_is_found_from_anywhere(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config_file(f"{place}:digits,smoke").name == "odconv"
    file = tmp_path / place  # a file of one's own comes first
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("import ml_collections as c\ndef get_config():\n    return c.ConfigDict()\n")
    if file.suffix:
        assert "name" not in load_config_file(place)


@pytest.mark.parametrize("place", ["odcon", "odcon.py", "experiments/configs/odcon.py"])
def test_a_config_that_the_package_lacks_is_answered_in_the_words_of_the_user(
    place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no config {place}; did you mean 'odconv'"):
        load_config_file(place)


def test_settings_are_found_by_their_path():
    config = ConfigDict({"epochs": 3, "optimizer": {"name": "adam", "clip": 0.0}})
    assert find_setting(config, "optimizer.clip") == 0.0
    for path, says in {
        "epoch": "did you mean 'epochs'",
        "gan.latent": "no setting 'gan'; a config has only",
        "optimizer.nme": "no setting 'nme' in optimizer; did you mean 'name'",
        "optimizer.zzz": "there are clip, name",
        "epochs.more": "epochs is one setting",
        "optimizer": "group of settings: clip, name",
    }.items():
        with pytest.raises(UserError, match=says):
            find_setting(config, path)
