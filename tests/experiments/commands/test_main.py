"""Flags, and the sentence that answers a wrong one."""

import json
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import main as program
from experiments.configs import odconv
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.runs.folder import check_or_write_config
from experiments.train import loop

ROOT = Path(program.__file__).parents[1]
CONFIG = "--config=experiments/configs/odconv.py"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Returns a function that runs the command in this process: (exit code, output, errors)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache = jax.config.jax_compilation_cache_dir

    def run(*words):
        words = [f"{CONFIG}:smoke" if word is CONFIG else word for word in words]
        if not any(word.startswith("--workdir") for word in words):
            words.append(f"--workdir={tmp_path / 'run'}")
        # ml_collections reads the overrides from here.
        monkeypatch.setattr(sys, "argv", ["main.py", *words])
        # The flags of a process are global; this forgets values and the flags of overrides.
        with flagsaver.flagsaver():
            code = cli.run(program.main, sys.argv, program.__doc__)
        return code, *capsys.readouterr()

    yield run
    jax.config.update("jax_compilation_cache_dir", cache)
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def refused(command):
    """Returns a function that runs the command, sees it refused in one line, and returns the line."""

    def run(*words):
        code, out, err = command(*words)
        assert code == 2 and out == ""
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
        assert "\\n" not in err and "Traceback" not in err and len(err) < 500
        return err

    return run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Which experiment?"),
        (["--config=experiments/configs/odconv.py:digts"], "'digits'"),
        ([CONFIG, "--workdr=x"], "'--workdir'"),
        ([CONFIG, "stray"], "'stray' is not a flag"),
        ([CONFIG, "--distributed=perhaps"], "distributed=perhaps"),
        ([CONFIG, "--heartbeat=1"], "2 seconds"),
        ([CONFIG, "--config.name="], "--config.name=:"),
        ([CONFIG, "--config.optimzer.name=x"], "'optimizer'"),
        ([CONFIG, "--config.gan.latent=3"], "there is no setting 'gan'"),
        ([CONFIG, "--config.model.network=vgg16", "--config.model.depth=50"], "'depth'"),
        ([CONFIG, "--config.epochs=1.5"], "a whole number, such as 2"),
        ([CONFIG, "--config.conv.name=odcnv"], "'odconv'"),
        ([CONFIG, "--config.batch_size=6"], "multiple of 4"),
        (["--config=experiments/configs/odconv.py:folder", "--config.data.source=/no"], "/no"),
        (["--config=experiments/configs/odconv.py:ucr,name=A", "--config.data.source=/no"], "/no"),
        ([CONFIG, "--profile=3"], "--profile=50,60"),
        ([CONFIG, "--distributed"], "no cluster"),
    ],
)
def test_a_mistake_is_answered_in_one_line_before_anything_is_made(refused, words, says, tmp_path):
    assert says in refused(*words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_workdir_cannot_be_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(CONFIG, f"--workdir={tmp_path / 'file'}")
    assert f"The workdir {tmp_path / 'file'} cannot be used" in line


def test_a_workdir_of_other_settings_is_refused(refused, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "4").mkdir(parents=True)
    config = odconv.get_config("smoke")
    config.epochs, config.optimizer.learning_rate = 7, 0.5
    config.input.threads = 1  # does not change what is computed
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    line = refused(CONFIG)
    assert "epochs was 7 and is now 2" in line
    assert "optimizer.learning_rate was 0.5 and is now 0.003" in line
    assert "threads" not in line and "seed" not in line
    assert json.loads((run / "config.json").read_text())["epochs"] == 7


def test_a_setting_newer_than_the_run_counts_as_its_default(tmp_path):
    config = odconv.get_config("smoke")
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    older = config.to_dict()
    del older["accumulate"], older["optimizer"]["clip"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    check_or_write_config(tmp_path, config)
    config.accumulate = 2
    with pytest.raises(UserError, match="settings: accumulate was 1 and is now 2"):
        check_or_write_config(tmp_path, config)


def test_a_damaged_config_json_is_refused(refused, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "4").mkdir(parents=True)
    (run / "config.json").write_text("{")
    assert "config.json is damaged" in refused(CONFIG)


def test_a_setting_can_be_corrected_before_the_first_checkpoint(refused):
    missing = "--config=experiments/configs/odconv.py:folder"
    for epochs in (3, 4):
        line = refused(missing, "--config.data.source=/nowhere", f"--config.epochs={epochs}")
        assert "other settings" not in line


def test_the_flags_of_processes_reach_jax(command, monkeypatch):
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *place, **times: calls.append((*place, times))
    )
    monkeypatch.setattr(loop, "train", lambda config, workdir, **_: None)
    address = "--coordinator_address=localhost:1234"
    assert command(CONFIG)[0] == 0
    assert command(CONFIG, "--distributed")[0] == 0
    place = (address, "--num_processes=2", "--process_id=0", "--heartbeat=5")
    assert command(CONFIG, *place)[0] == 0
    usual, short = ({"heartbeat_timeout_seconds": seconds} for seconds in (30, 5))
    assert calls == [(None, None, None, usual), ("localhost:1234", 2, 0, short)]


def test_the_flags_reach_the_run(command, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(loop, "train", lambda config, workdir, **_: calls.append((config, workdir)))
    assert command(CONFIG, "--config.epochs=5", "--noconfig.tensorboard")[0] == 0
    assert command("--config=experiments/configs/base.py:adiac", "--workdir=")[0] == 0
    (config, workdir), (static, usual) = calls
    assert (config.name, config.epochs, workdir) == ("odconv", 5, tmp_path / "run")
    assert (static.name, static.epochs, usual) == ("base", 120, Path("runs/base-adiac"))


def test_a_compilation_cache_that_is_set_is_kept(command, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "train", lambda config, workdir, **_: None)
    jax.config.update("jax_compilation_cache_dir", None)
    command(CONFIG)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / ".cache/dyn/xla")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    command(CONFIG)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
