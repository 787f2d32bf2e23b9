"""The whole loop, small: eight steps of a network a few channels wide."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import assert_same_run, rows, small, steps_kept

from experiments.configs import base, odconv
from experiments.core.errors import UserError
from experiments.load import load
from experiments.runs.checkpoints import Checkpoints
from experiments.train import loop as loop
from experiments.train.loop import train

pytestmark = pytest.mark.usefixtures("compiled_once")

FIGURES = {"curves.png", "confusion.png", "predictions.png", "attention.png"}
FIGURES |= {"pr_curves.png", "mistakes.png"}
MEASURED = {"top5", "precision", "recall", "f1", "top1_error", "top5_error"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled_once):
    """An uninterrupted run: (workdir, summary)."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    return workdir, train(small(), workdir)


def test_the_workdir_holds_what_it_should(finished):
    workdir, _ = finished
    assert {p.name for p in workdir.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "maps.npz", "checkpoints", "figures"),
        *("lock", "confusion.csv", "per_class.csv", "summary.txt"),
    }
    assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 4
    assert {p.name for p in (workdir / "figures").iterdir()} == FIGURES
    for name in FIGURES:
        Image.open(workdir / "figures" / name).verify()
    # Two evaluations, the two best, and the two latest: the sixth step lies between them.
    assert steps_kept(workdir) == [4, 6, 8]


def test_the_metrics_have_a_row_per_step_and_per_evaluation(finished):
    workdir, summary = finished
    found = rows(workdir)
    best = summary["best"]["step"]
    assert [(row["split"], row["step"]) for row in found] == [
        *(("train", step) for step in range(1, 5)),
        ("validation", 4),
        *(("train", step) for step in range(5, 9)),
        ("validation", 8),
        ("test", best),
    ]
    for row in found:
        names = {"loss", "accuracy"}
        names |= {"learning_rate", "temperature"} if row["split"] == "train" else MEASURED
        assert set(row) == {"step", "split"} | names
        assert np.isfinite(row["loss"])
    temperatures = [row["temperature"] for row in found if row["split"] == "train"]
    assert temperatures == sorted(temperatures, reverse=True) and temperatures[-1] == 1.0


def test_the_summary_says_what_came_out(finished):
    workdir, summary = finished
    assert json.loads((workdir / "summary.json").read_text()) == summary
    said = (workdir / "summary.txt").read_text()
    assert (
        said.startswith("odconv on digits")
        and f"accuracy {summary['test']['accuracy']:.4f}" in said
    )
    assert {"test", "best", "parameters", "macs", "params_sha256", "seconds", "versions"} <= set(
        summary
    )
    assert summary["dataset"] == "digits" and summary["steps"] == 8
    assert summary["examples"] == {"train": 32, "validation": 32, "test": 32}
    assert summary["parameters"] == 6_918 and summary["macs"] > 10_000
    evaluations = [row for row in rows(workdir) if row["split"] == "validation"]
    best = max(evaluations, key=lambda row: (row["accuracy"], -row["loss"]))
    assert {**summary["best"], "split": "validation"} == best
    test = rows(workdir)[-1]
    assert summary["test"] == {name: test[name] for name in ("loss", "accuracy", *MEASURED)}


def test_the_network_of_a_finished_run_gives_the_test_result_again(finished):
    workdir, summary = finished
    config = small()
    test = loop.data.load(config.data, config.seed).splits["test"]
    examples = [test[index] for index in range(len(test))]
    labels = np.array([example["label"] for example in examples])

    probabilities = load(workdir)([example["inputs"] for example in examples])

    assert np.mean(probabilities.argmax(-1) == labels) == pytest.approx(summary["test"]["accuracy"])
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert loss == pytest.approx(summary["test"]["loss"], rel=1e-4)


def test_a_finished_run_started_again_prints_its_result_and_stops(finished, monkeypatch, capsys):
    workdir, summary = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    monkeypatch.setattr(
        loop.data, "load_for_training", lambda *_, **__: pytest.fail("it loads data")
    )
    assert train(small(), workdir) == summary
    out = capsys.readouterr().out
    assert "already finished" in out and f"{summary['test']['accuracy']:.4f}" in out
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()} == before


class Interrupted(Exception):
    """Stands for anything that ends a run in the middle."""


def test_a_run_that_is_stopped_and_continued_is_the_uninterrupted_one(
    finished, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    managers, real, begun = [], loop.pipeline.train_batches, []

    class Recorded(Checkpoints):
        def __init__(self, *args):
            super().__init__(*args)
            managers.append(self)

    def stop_before(last):
        def batches(*args, start_step, **fields):
            begun.append(start_step)
            for step, batch in enumerate(real(*args, start_step=start_step, **fields), start_step):
                if step == last:
                    raise Interrupted
                yield batch

        return batches

    monkeypatch.setattr(loop, "Checkpoints", Recorded)
    monkeypatch.setattr(loop.pipeline, "train_batches", stop_before(7))
    with pytest.raises(Interrupted):
        train(small(), workdir)
    # A process that ends waits for its writer; here both go on in the same process.
    managers.pop().close()
    assert not (workdir / "summary.json").exists()
    monkeypatch.setattr(loop.pipeline, "train_batches", stop_before(None))
    train(small(), workdir)
    # The checkpoint of the sixth step lies between two evaluations.
    assert begun == [0, 6]
    assert_same_run(workdir, finished[0])


def test_a_run_that_is_stopped_after_its_last_step_only_writes_the_result(
    finished, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    # What is there when a process dies while it draws: all but the figures and the summary.
    unfinished = shutil.ignore_patterns("summary.json", "figures")
    shutil.copytree(finished[0], workdir, ignore=unfinished)
    train(small(), workdir)
    assert {p.name for p in (workdir / "figures").iterdir()} == FIGURES
    assert_same_run(workdir, finished[0])


@pytest.mark.parametrize(
    ("config_file", "figures"),
    [
        (base, FIGURES - {"attention.png"}),
        pytest.param(odconv, FIGURES, marks=pytest.mark.long),
    ],
    ids=["static twin", "dynamic"],
)
def test_series_train_through_the_same_loop(config_file, figures, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "Toy"
    folder.mkdir()
    for part in ("TRAIN", "TEST"):
        table = rng.normal(size=(16, 25))
        table[:, 0] = np.arange(16) % 2 + 1
        np.savetxt(folder / f"Toy_{part}.tsv", table, delimiter="\t", fmt="%.4f")
    source = {"data.source": str(folder)}
    summary = train(small(config_file, "ucr,name=Toy,smoke", **source), tmp_path / "run")
    assert summary["dataset"] == "Toy" and summary["steps"] == 4
    assert summary["examples"]["train"] == summary["examples"]["test"] == 16
    # The static twin has no attention to show, and no temperature.
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} == figures
    assert ("temperature" in rows(tmp_path / "run")[0]) == ("attention.png" in figures)


@pytest.mark.long
def test_pictures_of_a_folder_train_through_the_same_loop(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "pets" / "cats" / "broken.png").write_bytes(b"no picture")
    changes = {"data.source": str(tmp_path / "pets"), "image_size": 16}
    summary = train(small(base, "folder,smoke", **changes), tmp_path / "run")
    assert summary["dataset"] == "pets" and sum(summary["examples"].values()) == 24
    assert summary["skipped"] == 1
    assert "broken.png" in (tmp_path / "run" / "skipped.csv").read_text()
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} == FIGURES - {"attention.png"}


@pytest.mark.long
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    changes = {"optimizer.learning_rate": 1e30, "epochs": 100}
    with pytest.raises(UserError, match=r"at step \d+, whose batch.*learning_rate"):
        train(small(base, **changes), tmp_path)
    assert not (tmp_path / "summary.json").exists()
