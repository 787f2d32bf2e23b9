"""Limits of single settings: the table beside the defaults."""

import pytest

from dyn.models import autoencoder
from experiments.configs import common, hard, odconv, soundscape_autoencoder
from experiments.configs.shared.limits import check_limits
from experiments.configs.shared.settings import SECTIONS, Setting, list_paths
from experiments.core.errors import UserError
from experiments.data import NAMES
from experiments.tasks import TASKS, backbone, segmentation
from experiments.tasks.classification import SERIES_NETWORKS
from experiments.train.optimizer import OPTIMIZERS, SCHEDULES, TEMPERATURES

TABLE = dict(list_paths(SECTIONS))


def test_choices_are_those_of_the_code_that_takes_them():
    choices = {
        "task": TASKS,
        "data.name": NAMES,
        "optimizer.name": OPTIMIZERS,
        "optimizer.schedule": SCHEDULES,
        "temperature.schedule": TEMPERATURES,
        "model.network": (*backbone.NETWORKS, *SERIES_NETWORKS),
        "model.depth": backbone.RESNETS,
        "head.name": segmentation.HEADS,
        "autoencoder.pooling": autoencoder.POOLINGS,
        "autoencoder.code_activation": autoencoder.CODE_ACTIVATIONS,
    }
    for path, known in choices.items():
        assert set(TABLE[path].allowed) == set(known), path


@pytest.mark.parametrize("path", TABLE)
def test_a_default_is_allowed_and_a_number_has_limits(path):
    setting = TABLE[path]
    assert isinstance(setting, Setting)
    entries = setting.default if isinstance(setting.default, tuple) else (setting.default,)
    if any(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in entries):
        assert setting.allowed


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"model.width": 0}, "choose 1 or more"),
        ({"model.dropout": 1.0}, "less than 1"),
        ({"model.dropout": float("nan")}, "choose 0 or more"),
        ({"optimizer.learning_rate": 0.0}, "choose more than 0"),
        ({"optimizer.learning_rate": float("inf")}, "learning_rate=inf"),
        ({"optimizer.learning_rate": 1e-45}, "float32"),
        ({"optimizer.betas": (0.9,)}, "give 2 value"),
        ({"optimizer.betas": (0.9, 1.0)}, "betas"),
        ({"normalise.mean": ()}, "give 1 or 3 value"),
        ({"normalise.std": (0.0,)}, "more than 0"),
        ({"normalise.mean": ("a",)}, "normalise.mean"),
        ({"optimizer.name": "admm"}, "did you mean 'adam'"),
        ({"dtype": "float33"}, "did you mean 'float32'"),
        ({"model.depth": 17}, "choose one of 6, 10, 18, 34, 50"),
        ({"epochs": 2**31}, "2147483647 or less"),
        ({"input.threads": 257}, "256 or less"),
        ({"image_size": 8193}, "8192 or less"),
        ({"temperature.start": 0.0}, "more than 0"),
        ({"conv.num_kernels": 0}, "num_kernels"),
        ({"conv.num_kernels": 1025}, "1024 or less"),
    ],
)
def test_a_value_outside_its_limits_is_refused(setting, says):
    config = odconv.get_config("digits")
    config.update_from_flattened_dict(setting)
    with pytest.raises(UserError, match=says):
        check_limits(config)


def test_limits_reach_the_sections_of_other_tasks():
    config = soundscape_autoencoder.get_config("songs")
    config.autoencoder.widths = (4, 0)
    with pytest.raises(UserError, match="widths"):
        check_limits(config)
    config = hard.get_config("digits")
    config.auxiliary.weight = -1.0
    with pytest.raises(UserError, match="0 or more"):
        check_limits(config)
    config = common.get_config("audio")
    config.audio.min_fraction = 0.0
    with pytest.raises(UserError, match="more than 0 and 1 or less"):
        check_limits(config)
