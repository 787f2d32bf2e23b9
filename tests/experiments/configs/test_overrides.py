import pytest

from experiments.configs.shared.assemble import complete_config
from experiments.configs.shared.flags import add_settings
from experiments.configs.shared.overrides import check_used, has_setting, override, sweep
from experiments.core.errors import UserError
from experiments.train.grid import load_config


def test_sweep_combines_configs_and_values():
    configs = [load_config(name, "adiac") for name in ("net1", "net1_dynamic")]
    configs[1].baseline = "net1"
    grid = {"optimizer.learning_rate": ["1e-3", "3e-3"], "epochs": ["5"]}
    swept = sweep(configs, grid)
    values = [f",learning_rate={rate},epochs=5" for rate in grid["optimizer.learning_rate"]]
    assert [c.name for c in swept] == [c.name + value for c in configs for value in values]
    assert [c.optimizer.learning_rate for c in swept] == [1e-3, 3e-3, 1e-3, 3e-3]
    assert {c.epochs for c in swept} == {5} and configs[0].epochs != 5
    # Each is compared with, and starts from, the config with the same values.
    assert [c.baseline for c in swept[2:]] == [c.name for c in swept[:2]]
    assert [c.start.config for c in swept[2:]] == [c.name for c in swept[:2]]
    assert sweep(configs, {}) == configs


def test_config_without_the_swept_setting_occurs_once():
    configs = [load_config(name, "digits") for name in ("base", "odconv")]
    swept = sweep(configs, {"temperature.start": ["10", "20"]})
    assert [c.name for c in swept] == ["base", "odconv,start=10", "odconv,start=20"]
    assert {c.baseline for c in swept} == {"base"}


def test_a_field_of_a_layer_is_swept_where_the_layer_has_it():
    configs = [load_config(name, "digits") for name in ("base", "odconv")]
    swept = sweep(configs, {"conv.reduction": ["0.25", "0.5"]})
    assert [c.conv.get("reduction") for c in swept] == [None, 0.25, 0.5]


def test_a_swept_start_is_the_config_that_starts_from_nothing():
    configs = [load_config(name, "digits") for name in ("base", "odconv")]
    swept = sweep(configs, {"start.config": ["", "base"], "temperature.start": ["1", "30"]})
    starts = {config.name: config.start.config for config in swept}
    assert starts == {
        "base,from=none": "",
        "base,from=base": "base,from=none",
        "odconv,from=none,start=1": "",
        "odconv,from=none,start=30": "",
        "odconv,from=base,start=1": "base,from=none",
        "odconv,from=base,start=30": "base,from=none",
    }


@pytest.mark.parametrize(
    ("grid", "fragment"),
    [
        ({"start.config": ["base"]}, "start.config=,base"),
        ({"epochs": ["5", "x"]}, "whole number"),
        ({"epoch": ["5"]}, "'epochs'"),
        ({"epochs": ["5", "5"]}, "once"),
    ],
)
def test_invalid_sweeps(grid, fragment):
    with pytest.raises(UserError, match=fragment):
        sweep([load_config("base", "digits")], grid)


def test_settings_that_another_choice_removes_are_refused():
    configs = [load_config(name, "digits") for name in ("base", "odconv")]
    override(configs[0], "model.network", "mobilenet_v2")
    check_used(configs, ["model.depth", "temperature.start"], "--override")
    with pytest.raises(UserError, match=r"--override=model\.depth.*'depth'"):
        check_used(configs[:1], ["model.depth"], "--override")
    with pytest.raises(UserError, match=r"--sweep=model\.depth.*'depth'"):
        sweep(configs, {"model.depth": ["10", "18"]})


def test_settings_of_another_convolution_follow_its_choice():
    config = load_config("base", "digits")
    for path in ("temperature.start", "optimizer.attention_rate", "auxiliary.weight"):
        assert not has_setting(config, path)
    override(config, "conv.name", "odconv")
    for path, value in (("temperature.start", "3"), ("optimizer.attention_rate", "0.5")):
        override(config, path, value)
    complete = complete_config(config)
    assert (complete.temperature.start, complete.optimizer.attention_rate) == (3, 0.5)
    assert complete.temperature.schedule == "geometric"  # the data set's own
    with pytest.raises(UserError, match="no setting 'auxiliary'"):
        override(config, "auxiliary.weight", "1")
    assert config.is_locked


def test_flags_may_choose_another_convolution_and_its_settings_in_any_order():
    config = load_config("base", "digits")
    flags = {"temperature.start": "3.0", "conv.name": "odconv", "conv.num_kernels": "2"}
    add_settings(config, flags)
    assert has_setting(config, "temperature.start") and config.conv.num_kernels == 4
    config = load_config("base", "digits")
    add_settings(config, {"temperature.start": "3.0"})
    assert "temperature" not in config
