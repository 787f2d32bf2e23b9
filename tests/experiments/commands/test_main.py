"""Flags, the sentence that answers a wrong one, and workdirs that cannot be continued."""

import json
import re
from pathlib import Path

import jax
import pytest

from experiments.configs import odconv
from experiments.train import loop

CONFIGS = "--config=experiments/configs"
ODCONV = f"{CONFIGS}/odconv.py:smoke"


@pytest.fixture
def started(ask, monkeypatch):
    """The config and workdir of each run that would have been trained."""
    calls = []
    monkeypatch.setattr(loop, "train", lambda config, workdir, **_: calls.append((config, workdir)))
    return calls


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        # Found on the command line.
        ([], "Which experiment?"),
        ([ODCONV, "--heartbeat=1"], "2 seconds"),
        ([ODCONV, "--profile=3"], "--profile=50,60"),
        ([ODCONV, "--distributed"], "no cluster"),
        ([ODCONV, "--config.name="], "--config.name=:"),
        ([ODCONV, "--config.optimzer.name=x"], "'optimizer'"),
        ([ODCONV, "--config.gan.latent=3"], "there is no setting 'gan'"),
        ([ODCONV, "--config.model.network=vgg16", "--config.model.depth=50"], "'depth'"),
        ([ODCONV, "--config.epochs=1.5"], "a whole number, such as 2"),
        (["--config=odcon"], "did you mean 'odconv'"),
        (
            [ODCONV, "--config.conv.reductoin=0.5"],
            "no field 'reductoin'; did you mean 'reduction'",
        ),
        ([ODCONV, "--config.conv.reduction=much"], "is not a number, such as 0.0625"),
        ([ODCONV, "--config.conv.reduction=-1.0"], "choose more than 0"),
        ([ODCONV, "--config.conv.name=conv", "--config.conv.reduction=0.5"], "conv has no field"),
        ([ODCONV, "--config.conv.lowering=fast"], "lowering"),
        # Found when settings are compared.
        ([ODCONV, "--config.adapt_gates=True"], "with gates"),
        ([ODCONV, "--config.data.name=folder"], "two data sets"),
        ([ODCONV, "--config.task=segmentation"], "digits is for classification"),
        ([ODCONV, "--config.data.classes=3,3"], "twice"),
        ([f"{CONFIGS}/base.py:audio", "--config.audio.labels=multi"], "takes class"),
        # Found with the data.
        ([f"{CONFIGS}/odconv.py:folder", "--config.data.source=/no"], "/no"),
        ([f"{CONFIGS}/net1.py:digits,smoke"], "net1 is for series"),
        ([ODCONV, "--config.batch_size=128"], "more than the 64"),
        ([ODCONV, "--config.epochs=2000000000"], "an epoch has"),
        ([ODCONV, "--config.model.width=65536"], "GB on each device"),
        ([ODCONV, "--config.conv.attention_norm=x"], "is unknown"),
        ([ODCONV, "--workdir=" + "x" * 400], "too long"),
    ],
)
def test_mistakes(ask, words, fragment, tmp_path):
    assert fragment in (ask(*words) or "")
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_workdir_cannot_be_a_file(ask, below, tmp_path):
    (tmp_path / "file").write_text("")
    workdir = f"{tmp_path / 'file'}{below}"
    assert f"The workdir {workdir} cannot be used" in ask(ODCONV, f"--workdir={workdir}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"te'),
        ("summary.json", "[]"),
        ("summary.json", None),
        ("config.json", "{"),
        ("config.json", "5"),
        ("config.json", None),
    ],
)
def test_a_damaged_file_of_the_run_is_named(ask, name, content, tmp_path):
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    file = tmp_path / "run" / name
    file.mkdir() if content is None else file.write_text(content)
    assert name in ask(ODCONV)


def test_a_workdir_of_other_settings_is_refused(ask, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "4").mkdir(parents=True)
    config = odconv.get_config("smoke")
    config.epochs, config.optimizer.learning_rate = 7, 0.5
    config.input.threads = 1  # does not change what is computed
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    line = ask(ODCONV)
    assert "epochs was 7 and is now 2" in line
    assert "optimizer.learning_rate was 0.5 and is now 0.003" in line
    assert "threads" not in line and "seed" not in line
    assert json.loads((run / "config.json").read_text())["epochs"] == 7


def test_a_setting_can_be_corrected_before_the_first_checkpoint(ask):
    for epochs in (3, 4):
        words = ("--config.data.source=/nowhere", f"--config.epochs={epochs}")
        assert "other settings" not in ask(f"{CONFIGS}/odconv.py:folder", *words)


def test_the_flags_of_processes_reach_jax(ask, started, monkeypatch):
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *place, **times: calls.append((*place, times))
    )
    place = ("--coordinator_address=localhost:1234", "--num_processes=2", "--process_id=0")
    for words in ([], ["--distributed"], [*place, "--heartbeat=5"]):
        assert ask(ODCONV, *words, deep=False) is None
    usual, short = ({"heartbeat_timeout_seconds": seconds} for seconds in (30, 5))
    assert calls == [(None, None, None, usual), ("localhost:1234", 2, 0, short)]


def test_the_flags_reach_the_run(ask, started, tmp_path):
    ask(ODCONV, "--config.epochs=5", "--noconfig.tensorboard", deep=False)
    ask(f"{CONFIGS}/base.py:adiac", "--workdir=", deep=False)
    (config, workdir), (static, usual) = started
    assert (config.name, config.epochs, workdir) == ("odconv", 5, tmp_path / "run")
    assert (static.name, static.epochs, usual) == ("base", 120, Path("runs/base-adiac"))


def test_the_name_of_a_config_is_enough_and_fields_of_layers_are_flags(ask, started, tmp_path):
    layer = ("--config.conv.reduction=0.5", "--config.conv.lowering=taps")
    ask("--config=odconv:smoke", *layer, deep=False)
    other = ("--config.conv.name=condconv", "--config.conv.num_kernels=2")
    ask(
        "--config=base:smoke",
        *other,
        "--config.attention.name=cbam",
        "--config.attention.reduction=2",
        deep=False,
    )
    (config, _), (changed, _) = started
    assert (config.name, config.conv.reduction, config.conv.lowering) == ("odconv", 0.5, "taps")
    assert changed.conv.to_dict() == {"name": "condconv", "num_kernels": 2}
    assert changed.attention.reduction == 2.0


def test_help_lists_the_settings_of_a_config(capsys):
    from experiments import main as command
    from experiments.core import cli

    for words, says in {
        ("--help",): "--help together with --config=NAME",
        ("-h",): "\n  odconv                  Omni-dimensional dynamic convolution",
        ("--config=odconv", "--help"): "--config.conv.reduction=0.0625",
        ("-h", "--config", "odconv:voc2012"): "--config.head.name=fcn",
    }.items():
        assert (
            cli.run(command.main, ["main", *words], command.__doc__, settings=command.SETTINGS) == 0
        )
        out = capsys.readouterr().out
        assert out.startswith("Trains one experiment") and says in out
    assert "--config.epochs=30" in out and "of a ResNet" in out
    # Without a value of its own; a quarter of the backbone's features.
    assert re.search(r"--config.head.features= +the layer decides unless it is set; 1 or more", out)


def test_a_compilation_cache_that_is_set_is_kept(ask, started, tmp_path):
    for folder in ("home/.cache/dyn/xla", "theirs"):
        chosen = None if folder.startswith("home") else str(tmp_path / folder)
        jax.config.update("jax_compilation_cache_dir", chosen)
        ask(ODCONV, deep=False)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / folder)
