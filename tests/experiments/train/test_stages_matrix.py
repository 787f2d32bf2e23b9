"""A head that learns alone first, and then with everything, in one run."""

import re
from pathlib import Path

import numpy as np
import pytest
from finished_runs import random_variables
from flax import traverse_util
from products import thin_out
from small_runs import assert_same_run, interrupted_before, rows, saved_state, small

from experiments.configs import base
from experiments.runs.weights import read_weights, write_weights
from experiments.tasks import classification
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]


@pytest.fixture
def start(tmp_path):
    """Returns a function that makes a config, and a file of its network for other classes to start from.

    Of eight steps the head has the first four alone.
    """

    def write(hidden):
        path = tmp_path / "start.safetensors"
        settings = {
            "stages.head_epochs": 1,
            "stages.learning_rate": 1e-2,
            "optimizer.weight_decay": 0.1,
            "model.hidden": hidden,
            "init_from": str(path),
        }
        config = small(base, **settings)
        _, variables = random_variables(config, range(7), (8, 8, 1))
        write_weights(path, variables, {"config": {}, "classes": [], "shape": [16, 16, 3]})
        return config

    return write


def body_of(workdir, step):
    """Returns the saved parameters and statistics below the head, by name."""
    return {
        name: values
        for name, values in saved_state(workdir, step).items()
        if name.startswith(("['params']", "['batch_stats']"))
        and not re.match(r"\['params'\]\['(head|hidden)'\]", name)
    }


@pytest.mark.parametrize(
    "hidden",
    thin_out([4, 0], step=2),
    ids=["a hidden layer", "the network's own head"],
)
def test_the_head_learns_alone_first_and_interruptions_change_nothing(
    start, hidden, tmp_path, monkeypatch, capsys
):
    # The maps of reports take as long to compile as everything else, and have tests of their own.
    monkeypatch.setattr(classification, "save_maps", lambda *_: None)
    config, programs = start(hidden), {}
    train(config, tmp_path / "whole", programs)
    out = capsys.readouterr().out
    assert "the head alone for 1 epoch, then everything at 0.01" in out
    assert "new (other classes): head/bias (10,), head/kernel" in out
    rates = [row["learning_rate"] for row in rows(tmp_path / "whole") if row["split"] == "train"]
    assert rates[3] == pytest.approx(3e-3) and rates[4] == pytest.approx(1e-2)
    at_boundary, at_end = (body_of(tmp_path / "whole", step) for step in (4, 8))
    begun = traverse_util.flatten_dict(read_weights(Path(config.init_from))[0])
    for path, values in begun.items():
        name = "".join(f"['{key}']" for key in path)
        if name in at_boundary:
            np.testing.assert_array_equal(at_boundary[name], values, err_msg=name)
    moved = [not np.array_equal(at_end[name], at_boundary[name]) for name in at_boundary]
    # A bias may have no gradient by chance: ReLUs are silent in so small a network.
    assert np.mean(moved) > 0.8

    for step in (3, 7):
        with interrupted_before(step):
            train(config, tmp_path / "run", programs)
    train(config, tmp_path / "run", programs)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
