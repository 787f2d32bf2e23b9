"""Trains one experiment, in order: data, model and optimizer, restore, loop, test."""

import contextlib
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from flax.training.early_stopping import EarlyStopping
from ml_collections import ConfigDict, FrozenConfigDict

from experiments.core import files
from experiments.core.console import Progress, print_facts, print_line, print_result
from experiments.core.errors import UserError
from experiments.core.escaping import escape_control
from experiments.core.memory import explain_out_of_memory
from experiments.core.words import count_noun
from experiments.data import Dataset, Example, pipeline
from experiments.data.transforms import AugmentFirst
from experiments.figures.curves import draw_training_curves
from experiments.runs import writers
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.data_record import DataRecord
from experiments.runs.folder import (
    check_or_write_config,
    continue_with_former_defaults,
    hash_parameters,
    list_versions,
    lock_workdir,
)
from experiments.runs.log import MetricLog
from experiments.runs.metrics import select_scalars
from experiments.runs.schema import read_summary
from experiments.tasks import Results, Task, make_task
from experiments.train.bad_step import explain_bad_evaluation, explain_bad_step
from experiments.train.banner import describe_result, describe_start, describe_test
from experiments.train.initialise import TrainedWeights, initialise_from, read_trained_weights
from experiments.train.interrupts import Stopped, explain_lost_process, handle_signals
from experiments.train.optimizer import StepCounts, count_steps
from experiments.train.profile import StepProfiler, StepRange
from experiments.train.program import Program, Programs, find_program
from experiments.train.run_data import describe_new_data, load_run_data
from experiments.train.sharding import shardings_of
from experiments.train.step import TrainState
from experiments.train.validate import check_data_fit, resolve_config

Variables = Mapping[str, Any]
STATISTICS_BATCHES = 50


def train(
    config: ConfigDict,
    workdir: Path,
    programs: Programs | None = None,
    profile: StepRange | None = None,
    brief: bool = False,
    accept_new_data: bool = False,
) -> dict[str, Any]:
    """Trains one experiment, resuming whatever `workdir` contains, and returns the summary.

    Args:
        config: the experiment.
        workdir: the folder of the run.
        programs: compiled programs of earlier runs in this process, which are reused and added to.
        profile: the first and the last step to trace into `workdir/profile`; None traces nothing.
        brief: whether to print the progress and a line with the result alone, as for one run of many.
        accept_new_data: whether to continue a run whose data has changed.
    """
    # Resolved once, and frozen: nothing below checks or changes a setting again.
    config = continue_with_former_defaults(workdir, config)
    experiment = FrozenConfigDict(resolve_config(config))
    is_process_0 = jax.process_index() == 0
    with explain_file_errors(workdir):
        if summary := read_summary(workdir, needed=("test", "best")):
            if is_process_0:
                check_or_write_config(workdir, experiment)
            print_summary("already finished", summary, workdir, brief)
            if is_process_0 and not brief:
                start = f"--config.init_from={workdir}"
                print_line(f"To train on from it, give {start} and another --workdir.")
            if is_process_0 and (note := describe_new_data(experiment, workdir, brief)):
                print_line(f"note: {note}")
            return summary
        lock = lock_workdir(workdir) if is_process_0 else contextlib.nullcontext()
        with lock, explain_lost_process(), explain_out_of_memory():
            if is_process_0:
                check_or_write_config(workdir, experiment)
            programs = {} if programs is None else programs
            return _train(experiment, workdir, programs, profile, brief, accept_new_data)


def print_summary(title: str, summary: Mapping[str, Any], workdir: Path, brief: bool) -> None:
    """Prints the result of a run on process 0."""
    if jax.process_index():
        return
    if brief:
        print_line(f"{title}: {describe_test(summary)}; {summary.get('seconds') or 0:.0f} s")
    else:
        print_result(title, describe_result(summary, workdir))


@contextlib.contextmanager
def explain_file_errors(workdir: Path) -> Iterator[None]:
    """Turns the system's error about a full disk, or about a file of the run, into a UserError."""
    try:
        yield
    except OSError as error:
        place = str(error.filename2 or error.filename or workdir)
        if error.errno in files.NO_ROOM:
            advice = "free space or make the folder writable"
        elif error.errno and Path(place).is_relative_to(workdir):
            advice = "move away what is there, or make it writable"
        else:
            raise
        raise UserError(
            f"{place} cannot be written: {error.strerror}. The checkpoints are intact: {advice}, then run "
            "the same command again."
        ) from error


@dataclasses.dataclass
class TrainingRun:
    """A run in progress: its parts, and how far it has come."""

    config: ConfigDict
    workdir: Path
    task: Task
    dataset: Dataset
    data_record: DataRecord
    train_transform: Callable[..., Example]
    eval_transform: Callable[..., Example]
    steps: StepCounts
    program: Program
    checkpoints: Checkpoints
    state: TrainState  # after the last completed step
    step: int  # the last completed one
    progress: dict[
        str, Any
    ]  # saved with the state: `seconds`, the `best` evaluation, `early_stopping`, `config`, `data`
    stopping: EarlyStopping  # counts the evaluations without a lower loss
    started: float  # by `time.monotonic`, as if the run had never been interrupted
    log: MetricLog | None  # None except on process 0

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, interruptions left out."""
        return time.monotonic() - self.started


def _train(
    config: ConfigDict,
    workdir: Path,
    programs: Programs,
    profile: StepRange | None,
    brief: bool,
    accept_new_data: bool,
) -> dict[str, Any]:
    started = time.monotonic()
    is_process_0 = jax.process_index() == 0
    task = make_task(config)

    # ---------------------------------------------------------------- data
    dataset, data_record = load_run_data(config, workdir, accept_new_data)
    check_data_fit(config, dataset)
    steps = count_steps(config, len(dataset.splits["train"]))
    train_transform = task.make_transform(train=True)
    if dataset.augment:
        train_transform = AugmentFirst(dataset.augment, train_transform)
    eval_transform = task.make_transform(train=False)

    # Whatever ends the run, what is being saved is completed.
    with Checkpoints(workdir / "checkpoints", task.metric) as checkpoints:
        # ---------------------------------------------------------------- model and optimizer
        first, num_classes = dataset.splits["train"][0], len(dataset.classes)
        train_example = train_transform(first, np.random.default_rng(0))
        eval_example = eval_transform(first)
        trained = None
        if config.init_from and checkpoints.is_empty():
            trained = read_trained_weights(config, num_classes, eval_example["inputs"])
        program = find_program(
            programs, config, task, num_classes, steps, train_example, eval_example
        )

        # ---------------------------------------------------------------- restore
        step, state, progress, notes = restore_or_start(
            checkpoints, program, config, trained, num_classes, eval_example["inputs"]
        )
        print_facts(
            f"{config.name} on {dataset.name}",
            describe_start(config, dataset, program.cost, workdir, step, steps),
            quiet=brief or not is_process_0,
        )
        # With the settings, in case that `config.json` is lost.
        progress["config"] = files.to_json(config.to_dict())
        progress["data"] = data_record.fingerprint.digest
        log = None
        if is_process_0:
            log = MetricLog(workdir, step or -1, writers.open_writers(config, workdir, step))
        run = TrainingRun(
            config=config,
            workdir=workdir,
            task=task,
            dataset=dataset,
            data_record=data_record,
            train_transform=train_transform,
            eval_transform=eval_transform,
            steps=steps,
            program=program,
            checkpoints=checkpoints,
            state=state,
            step=step,
            progress=progress,
            # EarlyStopping stops one evaluation later than `patience` says, hence - 1.
            stopping=EarlyStopping(patience=config.early_stopping.patience - 1).replace(
                **(progress["early_stopping"] or {})
            ),
            started=started - progress["seconds"],
            log=log,
        )

        # ---------------------------------------------------------------- loop
        step_seconds = run_steps(run, profile, notes)

        # ---------------------------------------------------------------- test
        summary = test_best_checkpoint(run, step_seconds)
    print_summary("finished", summary, workdir, brief)
    return summary


def restore_or_start(
    checkpoints: Checkpoints,
    program: Program,
    config: ConfigDict,
    trained: TrainedWeights | None,
    num_classes: int,
    inputs: np.ndarray,
) -> tuple[int, TrainState, dict[str, Any], list[str]]:
    """Restores the latest checkpoint, or makes a new state: (step, state, progress, notes to show).

    A new state begins with the `trained` weights, or with random ones if they are None.
    """
    notes = [
        f"compiled in {program.cost['compile_seconds']:.1f} s; "
        f"{program.cost['xla_flops_per_step'] / 1e9:.2f} GFLOP per step by XLA's count"
    ]
    beginning = {"seconds": 0.0, "best": None, "early_stopping": None}
    if restored := checkpoints.restore_latest(program.state_shape):
        step, state, progress = restored
        return step, state, beginning | progress, notes
    state = program.create_state(config.seed)
    if trained:
        state, note = initialise_from(state, trained, config, num_classes, inputs)
        state = jax.device_put(state, shardings_of(program.state_shape))
        notes.append(note)
    return 0, state, beginning, notes


def run_steps(run: TrainingRun, profile: StepRange | None, notes: Sequence[str]) -> float | None:
    """Trains until the last step, an early stop or a signal; returns the median seconds of a step.

    Raises:
        Stopped: after a signal.
    """
    config, program, total = run.config, run.program, run.steps.total
    is_process_0 = jax.process_index() == 0
    eval_every = run.steps.per_epoch * config.evaluate_every
    timer = StepTimer(run.step)
    with (
        contextlib.closing(read_train_batches(run, config.input.workers)) as batches,
        handle_signals(run.step) as stop,
        StepProfiler(
            run.workdir / "profile", profile if is_process_0 else None, run.step
        ) as profiler,
        Progress(total, run.step, quiet=not is_process_0) as bar,
    ):
        for note in notes:
            bar.say(note)
        # The order matters. Rows are written before the checkpoint of their step: a run that is
        # stopped in between drops the rows past its checkpoint and writes them again.
        while run.step < total and not run.stopping.should_stop:
            batch = program.shard_batch(next(batches))
            run.step += 1
            profiler.begin(run.step, (run.state, batch))
            run.state, metrics = program.train_step(run.state, batch)
            profiler.end(run.step, metrics)
            signal = stop.signal_at(run.step)
            bar.update(run.step, metrics["loss"])
            if run.step % config.log_every == 0:
                metrics = {name: float(value) for name, value in metrics.items()}
                timer.lap(run.step)
                check_finite_state(run)
                if run.log:
                    run.log.write(run.step, "train", metrics)
            if run.step % eval_every == 0 or run.step == total:
                validate_and_save(run, bar)
                timer.restart(run.step)
                # It may have come meanwhile. Several processes would not agree on the step.
                signal = stop.number if jax.process_count() == 1 else signal
            elif run.step % config.checkpoint_every == 0 or signal:
                check_finite_state(run)
                save_checkpoint(run)
                timer.restart(run.step)
            if signal:
                run.checkpoints.wait()
                raise Stopped(run.step, signal)
        if run.stopping.should_stop:
            bar.say(
                f"stopped early: no lower loss in "
                f"{count_noun(config.early_stopping.patience, 'evaluation')}"
            )
    run.checkpoints.wait()
    return timer.median()


def read_train_batches(
    run: TrainingRun, num_workers: int = 0
) -> grain.DatasetIterator[pipeline.Batch]:
    """Returns an iterator over the training batches that follow the last step."""
    return pipeline.train_batches(
        run.dataset.splits["train"],
        run.train_transform,
        batch_size=run.config.batch_size,
        seed=run.config.seed,
        start_step=run.step,
        num_threads=run.config.input.threads,
        num_workers=num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def refresh_average(run: TrainingRun) -> None:
    """Computes the batch norm statistics of averaged parameters from the training batches that come next.

    Reads as many as lie between two evaluations, at most `STATISTICS_BATCHES`. Each costs about a third of a
    training step.
    """
    # A head that learns alone learns on top of the statistics that it started with.
    if not run.state.average or not run.state.batch_stats or run.step <= run.steps.head_only:
        return
    count = min(STATISTICS_BATCHES, run.steps.per_epoch * run.config.evaluate_every)
    with contextlib.closing(read_train_batches(run)) as batches:
        for number, batch in enumerate(itertools.islice(batches, count)):
            batch_stats = run.program.statistics_step(
                run.state.eval_variables,
                run.program.shard_batch(batch),
                run.state.rng,
                np.int32(run.step + number),
                np.int32(number),
            )
            run.state = run.state.replace(average={**run.state.average, "batch_stats": batch_stats})


class StepTimer:
    """Measures the seconds per step between the rows of the log, evaluations and checkpoints left out."""

    def __init__(self, step: int):
        """Starts after `step`."""
        self._laps: list[float] = []
        self.restart(step)

    def restart(self, step: int) -> None:
        """Leaves out the time since the last lap."""
        self._step, self._time = step, time.monotonic()

    def lap(self, step: int) -> None:
        """Records the seconds per step since the last lap."""
        self._laps.append((time.monotonic() - self._time) / (step - self._step))
        self.restart(step)

    def median(self) -> float | None:
        """Returns the median of the laps; None if there is none."""
        return statistics.median(self._laps) if self._laps else None


def run_over_split(
    run: TrainingRun, step: Callable[..., dict[str, Any]], variables: Variables, split: str
) -> Iterator[dict[str, Any]]:
    """Runs `step` over a split and yields its results, copied to the host; padding is masked."""
    batches = pipeline.eval_batches(
        run.dataset.splits[split],
        run.eval_transform,
        batch_size=run.config.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in batches:
        yield jax.device_get(step(variables, run.program.shard_batch(batch)))


def evaluate(run: TrainingRun, variables: Variables, split: str) -> dict[str, Any]:
    """Returns the metrics of a split."""
    sums = run_over_split(run, run.program.eval_step, variables, split)
    return run.task.compute_metrics(sums, run.dataset, split)


def inspect_examples(run: TrainingRun, variables: Variables, split: str) -> dict[str, Any]:
    """Returns what the figures show of each example of a split, in order."""
    parts = list(run_over_split(run, run.program.inspect_step, variables, split))
    joined = jax.tree.map(lambda *values: np.concatenate(values), *parts)
    is_real = joined.pop("mask") > 0
    return jax.tree.map(lambda values: values[is_real], joined)


def save_checkpoint(run: TrainingRun, metrics: dict[str, float] | None = None) -> None:
    """Starts writing a checkpoint; one with metrics takes part in the choice of the best."""
    run.progress["seconds"] = run.seconds
    run.checkpoints.save(run.step, run.state, run.progress, metrics)


def check_finite_state(run: TrainingRun) -> None:
    """Raises a UserError if a step produced non-finite numbers."""
    if run.state.failed:
        raise explain_bad_step(
            run.workdir,
            run.state,
            run.program,
            run.dataset.splits["train"],
            run.train_transform,
            batch_size=run.config.batch_size,
            seed=run.config.seed,
        )


def validate_and_save(run: TrainingRun, bar: Progress) -> None:
    """Evaluates the validation split, adapts the run to its loss, and saves a checkpoint with its metrics.

    After evaluations without a lower loss the learning rate is cut, and then the run ends.
    """
    config = run.config
    check_finite_state(run)
    refresh_average(run)
    metrics = evaluate(run, run.state.eval_variables, "validation")
    if not math.isfinite(metrics["loss"]):
        raise explain_bad_evaluation(run.workdir, run.state, metrics["loss"])
    if run.log:
        run.log.write(run.step, "validation", metrics)
    # Losses at different temperatures cannot be compared: patience begins after annealing.
    if run.step >= run.steps.annealing or not run.state.attention:
        if config.optimizer.schedule == "plateau":
            plateau = run.program.update_plateau(run.state.plateau, metrics["loss"])
            run.state = run.state.replace(plateau=plateau)
        if config.early_stopping.patience:
            run.stopping = run.stopping.update(metrics["loss"])
            run.progress["early_stopping"] = dataclasses.asdict(run.stopping)
    rank, best = run.checkpoints.rank, run.progress["best"]
    if best is None or rank(metrics) >= rank(best):
        run.progress["best"] = {"step": run.step, **metrics}
    save_checkpoint(run, metrics)
    bar.row(run.step, select_scalars(metrics, len(run.dataset.classes)), "validation")
    # All hosts take part: parameters may be sharded over them.
    variables = run.program.replicate(run.state.eval_variables)
    if run.log:
        results = Results(
            run.program.model, variables, run.dataset, run.workdir, config.seed, metrics
        )
        for warning in run.task.draw_progress(results, run.step):
            bar.say(warning)


def test_best_checkpoint(run: TrainingRun, step_seconds: float | None) -> dict[str, Any]:
    """Tests the best checkpoint, draws the figures, and writes and returns the summary."""
    program, task, workdir = run.program, run.task, run.workdir
    sha256 = hash_parameters(program.replicate(run.state.params))
    run.progress["best"], best = run.checkpoints.restore_best(
        run.progress["best"], program.state_shape
    )
    metrics = evaluate(run, best.eval_variables, "test") | task.reference_metrics(run.dataset)
    inspected = inspect_examples(run, best.eval_variables, "test")
    validation = {}
    if task.needs_validation:
        validation = inspect_examples(run, best.eval_variables, "validation")
    variables = program.replicate(best.eval_variables)
    summary = make_summary(run, metrics, sha256, step_seconds)
    if run.log:
        run.log.write(run.progress["best"]["step"], "test", metrics)
        run.log.close()
        draw_training_curves(run.log.rows(), workdir / "figures" / "curves.png")
        seed = run.config.seed
        task.draw_figures(
            Results(
                program.model, variables, run.dataset, workdir, seed, metrics, inspected, validation
            )
        )
        result = describe_result(summary, workdir)
        title = f"{run.config.name} on {run.dataset.name}, seed {seed}"
        lines = [title, *(f"{name:10}{value}" for name, value in result)]
        files.write_text(workdir / "summary.txt", "".join(f"{escape_control(x)}\n" for x in lines))
        # Last: its presence says that the run is finished.
        files.write_json(workdir / "summary.json", summary)
    return summary


def make_summary(
    run: TrainingRun, test_metrics: Mapping[str, Any], sha256: str, step_seconds: float | None
) -> dict[str, Any]:
    """Returns the content of `summary.json`."""
    config, dataset = run.config, run.dataset
    return {
        "config": config.name,
        "dataset": dataset.name,
        "seed": config.seed,
        "fold": fold if (fold := config.data.get("fold", -1)) >= 0 else None,
        "baseline": config.baseline,
        "metric": run.task.metric,
        "test": test_metrics,
        "best": run.progress["best"],
        "steps": run.step,
        **run.program.cost,
        "params_sha256": sha256,
        "batch_size": config.batch_size,
        "step_seconds": step_seconds,
        "examples_per_second": config.batch_size / step_seconds if step_seconds else None,
        "seconds": round(run.seconds, 1),
        # Needed by whatever predicts with the network.
        "classes": list(dataset.classes),
        "shape": list(run.eval_transform(dataset.splits["test"][0])["inputs"].shape),
        "examples": {name: len(split) for name, split in dataset.splits.items()},
        "skipped": len(dataset.skipped) + len(dataset.incomplete),
        "data": run.data_record.fingerprint.digest,
        "data_changes": list(run.data_record.changes),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": list_versions(),
    }
