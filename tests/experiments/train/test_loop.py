"""The whole loop, small: eight steps of a network a few channels wide."""

import json
import signal

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import assert_same_run, interrupted_before, rows, small, steps_kept

from experiments import data
from experiments.configs import base
from experiments.data import pipeline
from experiments.runs.checkpoints import restore_arrays, restore_best_variables
from experiments.tasks import make_task
from experiments.tasks.classification import Classification
from experiments.train import loop
from experiments.train.interrupts import Stopped
from experiments.train.loop import train
from experiments.train.validate import resolve_config

pytestmark = pytest.mark.usefixtures("compiled_once")

FIGURES = {"curves.png", "confusion.png", "predictions.png", "attention.png"}
FIGURES |= {"pr_curves.png", "mistakes.png"}
MEASURED = {"top5", "precision", "recall", "f1", "top1_error", "top5_error"}
# Everything that a run may lose when it is interrupted.
STATEFUL = {
    "average": 0.9,
    "optimizer.schedule": "plateau",
    "early_stopping.patience": 3,
    "accumulate": 2,
    "shard_parameters": True,
}


@pytest.fixture(scope="module")
def programs():
    return {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled_once, programs):
    """An uninterrupted run of ODConv: (workdir, summary)."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    return workdir, train(small(), workdir, programs)


def test_the_workdir_holds_what_it_should(finished):
    workdir, summary = finished
    assert {p.name for p in workdir.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "maps.npz", "checkpoints", "figures"),
        *("lock", "confusion.csv", "per_class.csv", "summary.txt", "data.json", "data.jsonl.gz"),
    }
    assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 4
    digest = json.loads((workdir / "data.json").read_text())["digest"]
    progress = json.loads((workdir / "checkpoints" / "8" / "progress" / "metadata").read_text())
    assert summary["data"] == progress["data"] == digest and not summary["data_changes"]
    assert {p.name for p in (workdir / "figures").iterdir()} == FIGURES
    for name in FIGURES:
        Image.open(workdir / "figures" / name).verify()
    # Two evaluations, the two best, and the two latest: the sixth step lies between them.
    assert steps_kept(workdir) == [4, 6, 8]


def test_the_metrics_have_a_row_per_step_and_per_evaluation(finished):
    workdir, summary = finished
    written = rows(workdir)
    assert [(row["split"], row["step"]) for row in written] == [
        *(("train", step) for step in range(1, 5)),
        ("validation", 4),
        *(("train", step) for step in range(5, 9)),
        ("validation", 8),
        ("test", summary["best"]["step"]),
    ]
    for row in written:
        names = {"loss", "accuracy"}
        names |= {"learning_rate", "temperature"} if row["split"] == "train" else MEASURED
        assert set(row) == {"step", "split"} | names
        assert np.isfinite(row["loss"])
    temperatures = [row["temperature"] for row in written if row["split"] == "train"]
    assert temperatures == sorted(temperatures, reverse=True) and temperatures[-1] == 1.0


def test_the_summary_holds_the_result(finished):
    workdir, summary = finished
    assert json.loads((workdir / "summary.json").read_text()) == summary
    text = (workdir / "summary.txt").read_text()
    assert text.startswith("odconv on digits")
    assert f"accuracy {summary['test']['accuracy']:.4f}" in text
    assert {"macs", "params_sha256", "seconds", "versions"} <= set(summary)
    assert summary["dataset"] == "digits" and summary["steps"] == 8
    assert summary["examples"] == {"train": 32, "validation": 32, "test": 32}
    assert summary["parameters"] == 6_918
    evaluations = [row for row in rows(workdir) if row["split"] == "validation"]
    best = max(evaluations, key=lambda row: (row["accuracy"], -row["loss"]))
    assert {**summary["best"], "split": "validation"} == best
    test = rows(workdir)[-1]
    assert summary["test"] == {name: test[name] for name in ("loss", "accuracy", *MEASURED)}


def test_a_finished_run_only_shows_its_result_again(finished, monkeypatch, capsys):
    workdir, summary = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    monkeypatch.setattr(loop, "find_program", lambda *_, **__: pytest.fail("compiles"))
    assert train(small(), workdir) == summary
    out = capsys.readouterr().out
    assert "already finished" in out and f"{summary['test']['accuracy']:.4f}" in out
    assert "data has changed" not in out
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()} == before


@pytest.fixture
def no_figures(monkeypatch):
    """Leaves out the figures, which take as long as everything else, and are not compared."""
    monkeypatch.setattr(Classification, "draw_figures", lambda *_: None)


def test_an_interrupted_odconv_run_continues_bit_for_bit(
    finished, programs, no_figures, slow_writer, tmp_path, capsys
):
    workdir = tmp_path / "run"
    with interrupted_before(7):
        train(small(), workdir, programs)
    assert not (workdir / "summary.json").exists()
    # An error waits for the save that has begun.
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "6"}
    capsys.readouterr()
    train(small(), workdir, programs)
    # The checkpoint of the sixth step lies between two evaluations.
    assert "from step 6" in capsys.readouterr().out
    assert_same_run(workdir, finished[0])


@pytest.mark.matrix
def test_averaged_parameters_are_evaluated_with_their_own_statistics(
    programs, no_figures, tmp_path
):
    config = small(base, average=0.9, epochs=1)
    train(config, tmp_path / "run", programs)
    checkpoint = tmp_path / "run" / "checkpoints" / "4"
    state = restore_arrays(checkpoint, ("params", "average", "batch_stats"))
    evaluated = restore_best_variables(tmp_path / "run")
    chex.assert_trees_all_equal({n: evaluated[n] for n in state["average"]}, state["average"])
    (program,) = [p for p in programs.values() if p.state_shape.average]
    config = resolve_config(config)
    dataset = data.load_for_training(config.data, config.seed)
    transform = make_task(config).make_transform(train=True)
    batches = pipeline.train_batches(
        dataset.splits["train"], transform, batch_size=config.batch_size, seed=0, start_step=4
    )
    variables = program.create_state(0).eval_variables | {"params": state["average"]["params"]}
    before, seen = variables["batch_stats"], []
    for step in range(4, 8):
        batch = program.shard_batch(next(batches))
        after = program.model.apply(
            variables,
            batch["inputs"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(step)},
        )[1]["batch_stats"]
        # The norms have a momentum of 0.9.
        seen.append(jax.tree.map(lambda old, new: 10 * new - 9 * old, before, after))
    batches.close()
    expected = jax.tree.map(lambda *each: sum(each) / 4, *seen)
    chex.assert_trees_all_close(expected, state["average"]["batch_stats"], rtol=1e-4, atol=1e-5)


def test_a_signal_during_the_last_evaluation_is_not_lost(
    finished, programs, no_figures, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    evaluate = loop.evaluate

    def evaluate_and_stop(run, variables, split):
        assert split == "validation"
        if run.step == run.steps.total:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(run, variables, split)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate_and_stop)
        # A study would go on with its next run.
        with pytest.raises(Stopped, match="stopped after step 8 "):
            train(small(), workdir, programs)
    train(small(), workdir, programs)
    assert_same_run(workdir, finished[0])


@pytest.mark.matrix
def test_an_interrupted_static_run_with_all_that_has_a_state_continues_bit_for_bit(
    programs, no_figures, tmp_path
):
    config = small(base, **STATEFUL)
    train(config, tmp_path / "whole", programs)
    with interrupted_before(7):
        train(config, tmp_path / "run", programs)
    train(config, tmp_path / "run", programs)
    progress = tmp_path / "run" / "checkpoints" / "8" / "progress" / "metadata"
    assert json.loads(progress.read_text())["early_stopping"]["best_metric"] < 10
    assert_same_run(tmp_path / "run", tmp_path / "whole")
