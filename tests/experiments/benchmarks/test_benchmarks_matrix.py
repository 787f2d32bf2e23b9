"""The other benchmarks, and each synthetic data set."""

import numpy as np
import pytest

from experiments.benchmarks import input, lowerings, synthetic
from experiments.configs import base
from experiments.tasks import backbone, make_task

pytestmark = pytest.mark.matrix

TINY = {"name": "resnet18", "stage_sizes": (1,)}


def test_lowerings_and_fitted_prices(command, read_results):
    code, out, _ = command(lowerings, "--cases=32-32", "--runs=1", "--fit")
    assert code == 0
    found = read_results("lowerings")["cases"]
    assert list(found) == ["32 x 4x4, 32-32, k3, K4"]
    (case,) = found.values()
    assert set(case) == {"forward", "training", "auto", "regret"}
    assert set(case["training"]) == {"taps", "patches", "shared", "samples"}
    assert case["regret"]["training"] == pytest.approx(
        case["training"][case["auto"]] / min(case["training"].values())
    )
    assert '"samples": Work(' in out


@pytest.mark.parametrize("name", synthetic.SETS)
def test_synthetic_sets_are_read(name, tmp_path):
    config, dataset, _ = input.load_synthetic(name, tmp_path / name, 60)
    assert not dataset.skipped
    transform = make_task(config).make_transform(train=True)
    source = dataset.splits["train"]
    assert len(source) > 10
    example = transform(source[0], np.random.default_rng(0))
    side = config.get("image_size", 0)
    assert example["inputs"].shape == ((side, side, 3) if side else dataset.shape)
    assert np.isfinite(example["inputs"]).all() and example["inputs"].std() > 0.1


def test_input(command, read_results, monkeypatch):
    configure = base.get_config
    monkeypatch.setattr(base, "get_config", lambda name: configure(f"{name},smoke"))
    monkeypatch.setitem(backbone.RESNETS, 10, TINY)
    code, _, _ = command(input, "--sets=digits", "--runs=2", "--quick")
    assert code == 0
    found = read_results("input")
    assert list(found["rows"]) == ["digits"]
    row = found["rows"]["digits"]
    rates = {"input_per_second", "training_per_second", "times_a_step", "step_fed"}
    assert set(row) == rates | {
        "preparing_seconds", "examples", "inputs", "batch", "compile_seconds"
    }  # fmt: skip
    assert row["inputs"] == [8, 8, 1] and row["batch"] == 16 and row["examples"] == 64
    assert all(row[rate] > 0 for rate in rates)
