"""A GAN through the loop: its run, stopped and continued."""

import pytest
from PIL import Image
from small_runs import assert_same_run, small

from experiments.configs import dr_acgan
from experiments.runs.checkpoints import Checkpoints
from experiments.train import loop
from experiments.train.loop import train

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("compiled_once")]

TINY = {
    "gan.widths": (8, 4, 4, 4),
    "gan.latent": 6,
    "image_size": 16,
    "steps": 8,
    "evaluate_every": 1,
    # In so few steps pictures would stay grey.
    "optimizer.learning_rate": 1e-2,
}
FIGURES = {"curves.png", "gan.png", "samples.png", "samples_000004.png", "samples_000008.png"}


def tiny():
    return small(dr_acgan, **TINY)


@pytest.fixture(scope="module")
def programs(compiled_once):
    """Compiled programs, shared by the runs."""
    return {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs):
    """An uninterrupted run: (workdir, summary)."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    return workdir, train(tiny(), workdir, programs)


def test_a_run_leaves_samples_curves_and_metrics(finished):
    workdir, summary = finished
    assert {p.name for p in (workdir / "figures").iterdir()} == FIGURES
    for name in FIGURES:
        Image.open(workdir / "figures" / name).verify()
    names = {"loss", "g", "d", "d_real", "d_fake", "aux_real", "aux_fake"}
    assert set(summary["test"]) == names and summary["metric"] is None
    assert summary["best"]["step"] == 8  # none ranks: the last one
    assert abs(summary["test"]["loss"] - summary["test"]["g"] - summary["test"]["d"]) < 1e-6


class Interrupted(Exception):
    """Stands for anything that ends a run in the middle."""


def test_a_continued_run_is_the_uninterrupted_one(finished, programs, tmp_path, monkeypatch):
    managers, real = [], loop.pipeline.train_batches

    class Recorded(Checkpoints):
        def __init__(self, *args):
            super().__init__(*args)
            managers.append(self)

    def stopped(*args, start_step, **fields):
        for step, batch in enumerate(real(*args, start_step=start_step, **fields), start_step):
            if step == 7:
                raise Interrupted
            yield batch

    monkeypatch.setattr(loop, "Checkpoints", Recorded)
    monkeypatch.setattr(loop.pipeline, "train_batches", stopped)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run", programs)
    managers.pop().close()
    monkeypatch.setattr(loop.pipeline, "train_batches", real)
    train(tiny(), tmp_path / "run", programs)
    assert_same_run(tmp_path / "run", finished[0])
