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
        ({"normalise.mean": ()}, "give 1 or 3 value"),
        ({"normalise.std": (0.0,)}, "more than 0"),
        ({"optimizer.name": "admm"}, "did you mean 'adam'"),
        ({"dtype": "float33"}, "did you mean 'float32'"),
        ({"model.depth": 17}, "choose one of 6, 10, 18, 34, 50"),
        ({"epochs": 2**31}, "2147483647 or less"),
        ({"image_size": 8193}, "8192 or less"),
        ({"conv.num_kernels": 1025}, "1024 or less"),
    ],
)
def test_a_value_outside_its_limits_is_refused(setting, says):
    config = odconv.get_config("digits")
    config.update_from_flattened_dict(setting)
    with pytest.raises(UserError, match=says):
        check_limits(config)


@pytest.mark.parametrize(
    ("config", "setting", "says"),
    [
        (soundscape_autoencoder.get_config("songs"), {"autoencoder.widths": (4, 0)}, "widths"),
        (hard.get_config("digits"), {"auxiliary.weight": -1.0}, "0 or more"),
        (common.get_config("audio"), {"audio.min_fraction": 0.0}, "more than 0 and 1 or less"),
    ],
)
def test_limits_reach_the_sections_of_other_tasks(config, setting, says):
    config.update_from_flattened_dict(setting)
    with pytest.raises(UserError, match=says):
        check_limits(config)
