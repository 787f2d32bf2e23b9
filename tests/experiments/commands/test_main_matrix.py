"""A workdir whose checkpoints belong to another network."""

import numpy as np
import pytest
from small_runs import small

from experiments.configs import dyconv
from experiments.core.errors import UserError
from experiments.tasks.classification import Classification
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]


def test_a_checkpoint_of_other_kernels_or_classes_is_named_with_its_shapes(tmp_path, monkeypatch):
    """`config.json` does not tell if it is gone, or if other data lie in the same place."""
    monkeypatch.setattr(Classification, "draw_figures", lambda *_: None)
    run = tmp_path / "run"

    def write_data(classes):
        rng = np.random.default_rng(0)
        for part in ("TRAIN", "TEST"):
            table = np.column_stack([np.arange(60) % classes, rng.normal(size=(60, 16))])
            np.savetxt(tmp_path / f"Toy_{part}.tsv", table, delimiter="\t", fmt="%.3f")

    def start(num_kernels):
        changes = {"data.source": str(tmp_path), "epochs": 1, "conv.num_kernels": num_kernels}
        changes |= {"model.network": "net2", "series.features": 4}
        return train(small(dyconv, "ucr,name=Toy,smoke", **changes), run)

    write_data(classes=2)
    start(num_kernels=2)
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match="num_kernels was 2 and is now 3"):
        start(num_kernels=3)
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"another network: params/.* \(2,\) there and \(3,\) here"):
        start(num_kernels=3)
    (run / "config.json").unlink()
    write_data(classes=3)
    with pytest.raises(UserError, match=r"params/head/bias is \(2,\) there and \(3,\) here"):
        start(num_kernels=2)
    assert list((run / "checkpoints").iterdir())
