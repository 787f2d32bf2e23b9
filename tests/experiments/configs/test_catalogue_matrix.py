"""Every config of the catalogue trains; what layers sow and anneal reaches the loop."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small_runs import change

import experiments.configs
from experiments.configs import hard, kernel_warehouse
from experiments.configs.shared.overrides import has_setting
from experiments.core.config_file import list_configs
from experiments.reports.comparison import PERCENT
from experiments.runs import artifacts as maps
from experiments.train.loop import train

FOLDER = Path(experiments.configs.__file__).parent
# The small networks for series are trained by the tests of studies.
NAMES = [name for name in list_configs(FOLDER) if not name.startswith("net")]
pytestmark = pytest.mark.matrix
SMALL = {
    "model.width": 4,
    "data.limit": 16,
    "batch_size": 8,
    "epochs": 2,
    "temperature.epochs": 2,
    "auxiliary.epochs": 2,
}


# Of configs for recordings, whose smoke runs are on made-up songs.
OF_SOUND = {
    "audio.picture": "linear",  # the quickest to draw
    "audio.height": 32,
    "audio.width": 32,
    "gan.widths": (8, 4, 4, 4),
    "autoencoder.widths": (4, 4, 4, 6),
}


@pytest.fixture(scope="module", autouse=True)
def songs_in_one_place(tmp_path_factory):
    """They are written once for all configs, and not at home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYN_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module", autouse=True)
def ordinary_promotion():
    """Optax does not pass strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def without_maps(monkeypatch):
    """Leaves out the maps for reports, which take as long to compile as the rest and have their own tests."""
    monkeypatch.setattr(maps, "save_maps", lambda *_: None)


def small(config_file, **changes):
    config = config_file.get_config("smoke")
    settings = {k: v for k, v in {**SMALL, **OF_SOUND}.items() if has_setting(config, k)}
    return change(config, {**settings, **changes})


def train_rows(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_trains_on_digits_or_songs(name, tmp_path):
    config_file = importlib.import_module(f"experiments.configs.{name}")
    summary = train(small(config_file, epochs=1), tmp_path)
    assert summary["config"] == name and summary["steps"] == 2
    assert np.isfinite(summary["test"]["loss"])
    if summary["metric"] in PERCENT:
        assert 0 <= summary["test"][summary["metric"]] <= 1
    # A static network sows none.
    assert name != "base" or all("auxiliary" not in row for row in train_rows(tmp_path))


def test_the_losses_that_gates_sow_are_added_with_a_growing_weight(tmp_path):
    """The gradient's weight is 0 at first: the first step is that of a network without the loss."""
    summary = train(small(hard), tmp_path / "with")
    rows = train_rows(tmp_path / "with")
    assert all(np.isfinite(row["auxiliary"]) and row["auxiliary"] > 0 for row in rows)
    train(small(hard, **{"auxiliary.weight": 0.0}), tmp_path / "without")
    others = train_rows(tmp_path / "without")
    assert [row["loss"] for row in rows[:2]] == [row["loss"] for row in others[:2]]
    assert rows[-1]["loss"] != others[-1]["loss"]
    assert "attention.png" in {path.name for path in (tmp_path / "with/figures").iterdir()}
    assert summary["steps"] == 4


def test_the_warehouse_s_blend_falls_to_zero_over_the_epochs_of_the_temperature(tmp_path):
    train(small(kernel_warehouse), tmp_path)
    assert [row["blend"] for row in train_rows(tmp_path)] == [0.75, 0.5, 0.25, 0.0]
    # It softens nothing, so there is no temperature to show.
    assert all("temperature" not in row for row in train_rows(tmp_path))
