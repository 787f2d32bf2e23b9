"""The training loop, read straight down: data, program, state, loop, test, pictures."""

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.training.early_stopping import EarlyStopping
from ml_collections import ConfigDict

from experiments import data
from experiments.core import files
from experiments.core.console import Progress, print_facts, print_result
from experiments.core.errors import UserError
from experiments.core.files import to_json
from experiments.data import Dataset, Example, pipeline
from experiments.figures import classification as figures
from experiments.runs import writers
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.folder import (
    check_or_write_config,
    hash_parameters,
    list_versions,
    lock_workdir,
    read_summary,
)
from experiments.runs.log import MetricLog
from experiments.tasks import Task, make_task
from experiments.train import bad_step
from experiments.train.banner import numbers, result_rows, start_rows
from experiments.train.evaluate import collect, evaluate
from experiments.train.initialise import check_start, start_from_run
from experiments.train.interrupts import Stopped, noticed, others_watched
from experiments.train.memory import exhaustion_said
from experiments.train.optimizer import Lengths, make_lengths
from experiments.train.profile import Steps, tracing
from experiments.train.program import Program, TrainState, build
from experiments.train.sharding import shardings_of
from experiments.train.validate import validate, validate_data


def train(
    config: ConfigDict,
    workdir: Path,
    programs: dict[str, Program] | None = None,
    profile: Steps | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, from where `workdir` stands, and returns the summary.

    Args:
        config: the experiment.
        workdir: where the run lives.
        programs: compiled programs of earlier runs in this process, which a run that differs from one of
            them in its seed or its examples alone uses again; new ones are added.
        profile: the first and the last step to trace into `workdir/profile`; None for no trace.

    Raises:
        UserError: for what the person who started it can mend.
    """
    validate(config)
    lead = jax.process_index() == 0
    try:
        if summary := read_summary(workdir):
            if lead:
                check_or_write_config(workdir, config)
            print_result("already finished", result_rows(summary, workdir), quiet=not lead)
            return summary
        held = lock_workdir(workdir) if lead else contextlib.nullcontext()
        with held, others_watched(), exhaustion_said():
            if lead:
                check_or_write_config(workdir, config)
            return _train(config, workdir, {} if programs is None else programs, profile)
    except OSError as error:
        if error.errno not in files.NO_ROOM:
            raise
        raise UserError(
            f"{error.filename or workdir} cannot be written: {error.strerror}. The checkpoints are intact: "
            "make room, or the folder writable, and give the same command again."
        ) from error


def _train(
    config: ConfigDict, workdir: Path, programs: dict[str, Program], profile: Steps | None
) -> dict[str, Any]:
    started = time.monotonic()
    lead = jax.process_index() == 0
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    task = make_task(config)

    # ---------------------------------------------------------------- data
    dataset = data.load_for_training(
        config.data,
        config.seed,
        audio=config.get("audio"),
        image_size=config.image_size,
        workdir=workdir if lead else None,
    )
    validate_data(config, dataset)
    transform = {is_train: task.make_transform(train=is_train) for is_train in (True, False)}
    lengths = make_lengths(config, len(dataset.splits["train"]))

    def evaluation_batches(split: str) -> Any:
        source = dataset.splits[split]
        return pipeline.eval_batches(
            source, transform[False], batch_size=config.batch_size, **hosts
        )

    def evaluation(state: TrainState, split: str) -> dict[str, Any]:
        step, batches = program.evaluation_step, evaluation_batches(split)
        outputs = evaluate(step, state.evaluated, batches, program.put)
        return task.compute_metrics(outputs, dataset, split)

    # ---------------------------------------------------------------- program and state
    inputs = transform[False](dataset.splits["train"][0])["inputs"]
    if config.init_from and not (workdir / "checkpoints").exists():
        check_start(config, len(dataset.classes), inputs)
    program = find_program(programs, config, task, dataset, lengths, transform)
    checkpoints = Checkpoints(workdir / "checkpoints", task.metric)
    latest, begins = checkpoints.restore_latest(program.shape), ""
    if latest is None:
        start_step = 0
        state = program.create(config.seed)
        if config.init_from:
            state, begins = start_from_run(
                state, config, task, len(dataset.classes), inputs, program.shape.step.sharding
            )
            state = jax.device_put(state, shardings_of(program.shape))
        progress: dict[str, Any] = {"seconds": 0.0, "best": None, "early_stopping": None}
    else:
        start_step, state, progress = latest
    rank = checkpoints.rank
    # Flax counts from the evaluation after the last good one.
    stopping = EarlyStopping(patience=config.early_stopping.patience - 1)
    if progress["early_stopping"]:
        stopping = stopping.replace(**progress["early_stopping"])
    print_facts(
        f"{config.name} on {dataset.name}",
        start_rows(config, dataset, program.cost, workdir, start_step, lengths),
        quiet=not lead,
    )

    # ---------------------------------------------------------------- loop
    batches = pipeline.train_batches(
        dataset.splits["train"],
        transform[True],
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        num_threads=config.input.threads,
        num_workers=config.input.workers,
        **hosts,
    )
    log = None
    if lead:
        log = MetricLog(
            workdir, start_step or -1, writers.open_writers(config, workdir, start_step)
        )
    earlier = progress["seconds"]

    def write(step: int, split: str, metrics: dict[str, float]) -> None:
        if log:
            log.write(step, split, metrics)

    def save(step: int, metrics: dict[str, float] | None = None) -> None:
        progress["seconds"] = earlier + time.monotonic() - started
        checkpoints.save(step, state, progress, metrics)

    def check() -> None:
        if state.failed:
            raise bad_step.explain(
                config, workdir, state, program, dataset.splits["train"], transform[True]
            )

    step = start_step
    paces = []  # seconds a step, over the steps between two rows of the log
    timed_from, begun = step, time.monotonic()
    with (
        noticed(start_step) as asked,
        tracing(workdir / "profile", profile if lead else None, start_step) as run,
        Progress(lengths.total, start_step, quiet=not lead) as shown,
    ):
        shown.say(
            f"compiled in {program.cost['compile_seconds']:.1f} s; "
            f"{program.cost['xla_flops_per_step'] / 1e9:.2f} GFLOP a step by XLA's count"
        )
        if begins:
            shown.say(begins)
        # The order matters. Rows are written before the checkpoint of their step: a run that is
        # stopped in between drops the rows past its checkpoint and writes them again.
        while step < lengths.total and not stopping.should_stop:
            step += 1
            state, metrics = run(step, program.train_step, state, program.put(next(batches)))
            stop = asked.by(step)
            shown.update(step, metrics["loss"])
            if step % config.log_every == 0:
                metrics = {name: float(value) for name, value in metrics.items()}
                paces.append((time.monotonic() - begun) / (step - timed_from))
                timed_from, begun = step, time.monotonic()
                check()
                write(step, "train", metrics)
            if step % (lengths.epoch * config.evaluate_every) == 0 or step == lengths.total:
                check()
                metrics = evaluation(state, "validation")
                if not math.isfinite(metrics["loss"]):
                    raise bad_step.explain_evaluation(metrics["loss"], step, workdir, state)
                write(step, "validation", metrics)
                # Losses at different temperatures do not compare: patience begins behind annealing.
                if step >= lengths.annealing or not state.attention:
                    if config.optimizer.schedule == "plateau":
                        reduced = program.reduce(state.plateau, metrics["loss"])
                        state = state.replace(plateau=reduced)
                    if config.early_stopping.patience:
                        stopping = stopping.update(metrics["loss"])
                        progress["early_stopping"] = dataclasses.asdict(stopping)
                if progress["best"] is None or rank(metrics) >= rank(progress["best"]):
                    progress["best"] = {"step": step, **metrics}
                save(step, metrics)
                shown.row(step, numbers(metrics))
                # By all hosts: parameters may be sharded over them.
                variables = program.whole(state.evaluated)
                if lead:
                    for warning in task.draw_progress(
                        program.model, variables, dataset, workdir, step, config.seed
                    ):
                        shown.say(warning)
                timed_from, begun = step, time.monotonic()
            elif step % config.checkpoint_every == 0 or stop:
                check()
                save(step)
                timed_from, begun = step, time.monotonic()
            if stop and step < lengths.total:
                checkpoints.wait()
                raise Stopped(step, stop)
        if stopping.should_stop:
            shown.say(f"stopped early: no lower loss in {config.early_stopping.patience} epochs")
    batches.close()
    checkpoints.wait()

    # ---------------------------------------------------------------- test and pictures
    checksum = hash_parameters(program.whole(state.params))
    progress["best"], best = checkpoints.restore_best(progress["best"], program.shape)
    test = evaluation(best, "test") | task.reference_metrics(dataset)
    write(progress["best"]["step"], "test", test)
    found = collect(program.inspection, best.evaluated, evaluation_batches("test"), program.put)
    variables = program.whole(best.evaluated)
    checkpoints.close()
    pace = statistics.median(paces) if paces else None
    summary = {
        "config": config.name,
        "dataset": dataset.name,
        "seed": config.seed,
        "fold": config.data.fold if config.data.fold >= 0 else None,
        "baseline": config.baseline,
        "metric": task.metric,
        "test": test,
        "best": progress["best"],
        "steps": step,
        **program.cost,
        "params_sha256": checksum,
        "batch_size": config.batch_size,
        "step_seconds": pace,
        "examples_per_second": config.batch_size / pace if pace else None,
        "seconds": round(earlier + time.monotonic() - started, 1),
        # What whoever predicts with the network has to know.
        "classes": list(dataset.classes),
        "shape": list(transform[False](dataset.splits["test"][0])["inputs"].shape),
        "examples": {name: len(split) for name, split in dataset.splits.items()},
        "skipped": len(dataset.skipped),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": list_versions(),
    }
    if lead:
        log.close()
        figures.training_curves(log.rows(), workdir / "figures" / "curves.png")
        task.draw_figures(program.model, variables, found, test, dataset, workdir, config.seed)
        lines = (f"{name:10}{value}\n" for name, value in result_rows(summary, workdir))
        title = f"{config.name} on {dataset.name}, seed {config.seed}\n"
        files.write_text(workdir / "summary.txt", title + "".join(lines))
        # Last: its presence says that the run is finished.
        files.write_json(workdir / "summary.json", summary)
        print_result("finished", result_rows(summary, workdir))
    return summary


def find_program(
    programs: dict[str, Program],
    config: ConfigDict,
    task: Task,
    dataset: Dataset,
    lengths: Lengths,
    transform: Mapping[bool, Callable[..., Example]],
) -> Program:
    """The compiled program of a run: one of those there are, or a new one, which is added."""
    first = dataset.splits["train"][0]
    examples = [transform[True](first, np.random.default_rng(0)), transform[False](first)]
    shapes = jax.tree.map(np.shape, examples)
    free = ("seed", "data", "name", "input", "init_from")
    rest = {k: v for k, v in config.to_dict().items() if k not in free}
    key = json.dumps(to_json([rest, lengths, len(dataset.classes), shapes]), sort_keys=True)
    if key in programs:
        known = programs[key]
        return dataclasses.replace(known, cost={**known.cost, "compile_seconds": 0.0})
    programs[key] = build(config, task, dataset, lengths, *examples)
    return programs[key]
