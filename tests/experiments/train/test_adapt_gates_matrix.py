"""Adapts the gates of hard attention to another task, while everything else stays as it was."""

import jax
import numpy as np
import pytest

from experiments.configs import hard
from experiments.runs.checkpoints import restore_best_variables
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]


def make_config(classes, **changes):
    config = hard.get_config("smoke")
    with config.unlocked():
        config.update_from_flattened_dict(
            {"epochs": 1, "model.width": 4, "batch_size": 8, "data.classes": classes, **changes}
        )
    return config


def test_only_gates_change(tmp_path):
    first = train(make_config("0,1,2,3,4"), tmp_path / "first")
    changes = {"adapt_gates": True, "init_from": str(tmp_path / "first")}
    second = train(make_config("5,6,7,8,9", **changes), tmp_path / "second")
    assert first["parameters"] == second["parameters"]
    before, after = (
        restore_best_variables(tmp_path / name)["params"] for name in ("first", "second")
    )
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, before, after))
    for path, same in leaves:
        names = [key.key for key in path]
        assert same == ("attention" not in names), names
