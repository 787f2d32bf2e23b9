"""Loading a finished run."""

import json

import numpy as np
import pytest
from finished_runs import config_with, write_finished

from experiments import embed, export, generate, inspect, predict
from experiments.configs import dr_acgan
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.load import load

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_an_old_run_has_its_classes_from_its_maps(tmp_path):
    write_finished(tmp_path, config_with(), "abc", (8, 8, 1))
    new = load(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"step": 4}}))
    with pytest.raises(UserError, match=r"maps\.npz"):
        load(tmp_path)
    arrays = {name: np.zeros(()) for name in ("labels", "predictions", "probabilities")}
    arrays |= {"layer": np.array(""), "activation": np.zeros(())}
    arrays |= {"inputs": np.zeros((2, 8, 8, 1)), "classes": np.array(list("xyz"))}
    np.savez(tmp_path / "maps.npz", **arrays)
    old = load(tmp_path)
    assert old.classes == ["x", "y", "z"] and old.shape == new.shape


def test_a_run_without_a_config_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("command", [embed, export, generate, inspect, predict])
def test_a_missing_run_is_one_line_and_exit_code_2(command, tmp_path, capsys, the_line):
    words = [command.__name__, str(tmp_path / "nowhere")]
    assert cli.run(command.main, words, command.__doc__) == 2
    assert "not a finished run" in the_line(capsys.readouterr().err)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run with three classes."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    write_finished(folder, config_with(), "abc", (8, 8, 1))
    return folder


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("summary.json", {"classes": ["a", "b"]}, r"head/bias is \(3,\) there and \(2,\) by the"),
        ("summary.json", {"shape": [8, 8, 3]}, "stem"),
        ("summary.json", {"shape": [8, 1]}, "not for series"),
        ("summary.json", {"shape": [9000, 9000, 1]}, "larger than any"),
        ("summary.json", {"best": {"step": 5}}, "checkpoints/5 is missing"),
        ("config.json", {"image_size": 16}, "its image_size is 16"),
        ("config.json", {"conv": {"name": "odcon"}}, "conv.name=odcon does not exist"),
        ("config.json", {"conv": {"name": "odconv", "num_kernel": 3}}, "no such field"),
        ("config.json", {"conv": {"name": "odconv"}}, "missing there"),
    ],
)
def test_parts_that_do_not_belong_together_are_one_sentence(
    finished, tmp_path, file, changes, says
):
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    for name in ("config.json", "summary.json"):
        saved = json.loads((finished / name).read_text())
        saved |= changes if name == file else {}
        (tmp_path / name).write_text(json.dumps(saved))
    with pytest.raises(UserError, match=says) as caught:
        load(tmp_path)
    assert "--config." not in str(caught.value)


def test_a_gan_predicts_nothing(tmp_path):
    config = dr_acgan.get_config("digits,smoke")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "summary.json").write_text(json.dumps({"best": {"step": 4}}))
    with pytest.raises(UserError, match="run of a GAN"):
        load(tmp_path)


def test_a_foreign_file_of_parameters_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no metadata"):
        load(tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"torn\.safetensors cannot be read"):
        load(tmp_path / "torn.safetensors")
