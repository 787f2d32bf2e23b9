"""The command that removes the kernels of hard attention that no example uses."""

import csv
import json

import numpy as np
import pytest
from finished_runs import config_with, write_finished

from experiments import data
from experiments.audio import songs
from experiments.core.errors import UserError
from experiments.inference.prune import prune_network
from experiments.load import load

GATED = {"name": "gated", "num_kernels": 4, "attention_norm": "layer"}


@pytest.fixture
def run(tmp_path):
    """A run of digits with random gates."""
    config = config_with("smoke", conv=GATED, **{"data.limit": 40})
    write_finished(tmp_path / "run", config, [str(n) for n in range(10)], (8, 8, 1))
    return tmp_path / "run"


@pytest.mark.usefixtures("standard_promotion")
def test_a_pruned_network_predicts_as_before(run, capsys):
    old = load(run)
    prune_network(old, runs=1)
    folder = run / "pruned"
    measured = json.loads((folder / "prune.json").read_text())
    before, after = measured["before"], measured["after"]
    with open(folder / "prune.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(int(row["kernels"]) == 4 for row in rows)
    for row in rows:
        never, always, left = (int(row[name]) for name in ("never", "always", "left"))
        assert left == max(1, 4 - never - max(0, always - 1))
    assert any(int(row["left"]) < 4 for row in rows)
    assert after["parameters"] < before["parameters"] and after["macs"] <= before["macs"]
    assert f"{before['parameters']:,} to {after['parameters']:,}" in capsys.readouterr().out
    # On what the gates were collected from, nothing changes.
    new = load(folder)
    source = data.load(old.config.data, old.config.seed).splits["train"]
    pictures = np.stack([source[n]["inputs"] for n in range(20)])
    np.testing.assert_allclose(new(pictures), old(pictures), rtol=0, atol=1e-5)
    assert (folder / "prune.png").stat().st_size > 1000
    with pytest.raises(UserError, match="give --overwrite"):
        prune_network(old)
    with pytest.raises(UserError, match="pruned already"):
        prune_network(new)


@pytest.mark.usefixtures("standard_promotion")
def test_a_run_on_recordings_keeps_its_splits(tmp_path):
    folder = songs.write_songs(tmp_path / "birds", 2, recordings=6, seconds=1.0, rate=16_000)
    settings = {"sample_rate": 16_000, "height": 16, "width": 16, "bands": 16, "seconds": 1.0}
    changes = {f"audio.{name}": value for name, value in settings.items()}
    changes |= {"data.source": str(folder), "data.dir": str(tmp_path / "data")}
    config = config_with("audio", conv=GATED, **changes)
    write_finished(tmp_path / "run", config, ["faller", "riser"], (16, 16, 1))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav"))
    parts = ["test"] * 5 + ["train", "validation"] + ["train"] * 5
    rows = [("file", "split"), *zip(names, parts, strict=True)]
    (tmp_path / "run/splits.csv").write_text("".join(f"{a},{b}\n" for a, b in rows))
    prune_network(load(tmp_path / "run"), runs=1)
    measured = json.loads((tmp_path / "run/pruned/prune.json").read_text())
    assert measured["examples"] == 5


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        ({"name": "conv"}, "no classifier with gates"),
        ({"name": "gated", "granularity": "filter"}, "gates for each filter"),
    ],
)
def test_other_networks_are_refused(tmp_path, conv, message):
    config = config_with("smoke", conv=conv)
    write_finished(tmp_path / "run", config, ["a", "b"], (8, 8, 1))
    with pytest.raises(UserError, match=message):
        prune_network(load(tmp_path / "run"))
