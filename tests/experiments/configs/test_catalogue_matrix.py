"""Every config of the catalogue trains; what layers sow and anneal reaches the loop."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from products import thin_out
from small_runs import rows, small

import experiments.configs
from experiments.configs import kernel_warehouse
from experiments.core.config_file import list_configs
from experiments.reports.comparison import PERCENT
from experiments.runs import artifacts as maps
from experiments.train.loop import train

FOLDER = Path(experiments.configs.__file__).parent
# The small networks for series are trained by the tests of studies.
NAMES = [name for name in list_configs(FOLDER) if not name.startswith("net")]
SLOW = ("dymn", "efficientnet_condconv", "mobilenet_dcd")
pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]
# Two epochs of two steps.
FOUR_STEPS = {"data.limit": 16, "temperature.epochs": 2}


@pytest.fixture(scope="module", autouse=True)
def songs_in_one_place(tmp_path_factory):
    """They are written once for all configs, and not at home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYN_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def without_maps(monkeypatch):
    """Leaves out the maps for reports, which take as long to compile as the rest and have their own tests."""
    monkeypatch.setattr(maps, "save_maps", lambda *_: None)


def train_rows(workdir):
    return [row for row in rows(workdir) if row["split"] == "train"]


@pytest.mark.parametrize("name", thin_out(NAMES, step=1, slow=SLOW))
def test_a_config_trains_on_digits_or_songs(name, tmp_path):
    config_file = importlib.import_module(f"experiments.configs.{name}")
    summary = train(small(config_file, "smoke", epochs=1), tmp_path)
    assert summary["config"] == name and summary["steps"] == 4
    assert np.isfinite(summary["test"]["loss"])
    if summary["metric"] in PERCENT:
        assert 0 <= summary["test"][summary["metric"]] <= 1
    # A static network sows none.
    assert name != "base" or all("auxiliary" not in row for row in train_rows(tmp_path))


def test_the_warehouse_s_blend_falls_to_zero_over_the_epochs_of_the_temperature(tmp_path):
    train(small(kernel_warehouse, **FOUR_STEPS), tmp_path)
    assert [row["blend"] for row in train_rows(tmp_path)] == [0.75, 0.5, 0.25, 0.0]
    # It softens nothing, so there is no temperature to show.
    assert all("temperature" not in row for row in train_rows(tmp_path))
