"""Measures whether the input pipeline of each data set is faster than training.

    python -m experiments.benchmarks.input --quick

    --sets=folder,voc2012   data sets; all without it
    --runs=5                timed rounds; medians are shown
    --quick                 shorter rounds, and only digits and a folder unless --sets names others
    --out=runs/benchmarks   the folder of the numbers and the plot

Each pipeline runs as in training, with the reader, transforms, batch size, threads and workers of
`experiments/configs/base.py` for that data set. So does the training step, with the static network: it is
the fastest, so the hardest to keep up with. The digits are real; the other sets are synthetic, written to a
temporary folder in the file formats of the real ones. Their files are in the system's cache: slow disks and
networks are not measured.

A round measures three things one after the other, each after a few batches that do not count:

    input           examples per second of the pipeline alone
    training        examples per second of training steps on one batch that is already in memory
    step, fed       duration of a step that the pipeline feeds, on the same cores, relative to a step on a
                    batch in memory: the real loss in training. 1.00 would be a pipeline that costs nothing.

`times a step` is input divided by training; the goal is 3. `preparing` is the time to load the data set once:
checking every file and, for Tiny ImageNet, writing the records. Writes `input.json` and `input.png`.
"""

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import data
from experiments.benchmarks import results, synthetic
from experiments.benchmarks.options import QUICK, RUNS
from experiments.configs import base
from experiments.core import cli, timing
from experiments.core.errors import UserError, suggest_nearest
from experiments.data import Dataset, pipeline
from experiments.data.transforms import AugmentFirst
from experiments.tasks import make_task
from experiments.train.optimizer import count_steps
from experiments.train.program import Program, Programs, find_program

SETS = flags.DEFINE_list("sets", [], "Data sets; all without it.")

GOAL = 3  # times a step
QUICK_SETS = ("digits", "folder")


def main() -> None:
    """Prints a row for each data set as soon as it has been measured."""
    names = SETS.value or (QUICK_SETS if QUICK.value else synthetic.SETS)
    for name in names:
        if name not in synthetic.SETS:
            hint = suggest_nearest(name, synthetic.SETS)
            raise UserError(f"--sets: there is no data set {name}{hint}")
    path = results.make_folder() / "input"
    machine = timing.describe_machine()
    count, seconds = (128, 0.3) if QUICK.value else (512, 2.0)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        # All are loaded first, because loading prints messages that would interrupt the table.
        sets = {name: load_synthetic(name, Path(temporary, name), count) for name in names}
        print(
            f"\n{machine['devices']} x {machine['device']}, {machine['cores']} cores; examples a second\n\n"
            f"{'':16}{'inputs':>14}{'batch':>7}{'preparing, s':>14}{'input':>9}{'training':>10}"
            f"{'times a step':>14}{'step, fed':>11}",
            flush=True,
        )
        programs: Programs = {}
        for name, (config, dataset, preparing) in sets.items():
            measured = measure_pipeline(config, dataset, programs, seconds)
            rows[name] = row = {"preparing_seconds": preparing, **measured}
            print(
                f"{name:16}{' x '.join(map(str, row['inputs'])):>14}{row['batch']:7}"
                f"{row['preparing_seconds']:14.1f}{row['input_per_second']:9,.0f}"
                f"{row['training_per_second']:10,.1f}{row['times_a_step']:14.1f}"
                f"{row['step_fed']:11.2f}",
                flush=True,
            )
    results.write_results(
        path,
        {"runs": RUNS.value, "goal": GOAL, "machine": machine, "rows": rows},
        {name: row["times_a_step"] for name, row in rows.items()},
        title="Input pipelines against a training step",
        caption=f"Each with the static network of its config, on {machine['cores']} cores and "
        f"{machine['devices']} x {machine['device']}; the goal is {GOAL}.",
        axis="times the examples a second of training",
        line=GOAL,
        more_is_better=True,
    )


def load_synthetic(name: str, root: Path, count: int) -> tuple[ConfigDict, Dataset, float]:
    """Writes a synthetic data set below a folder; returns its config, the set and the seconds of loading."""
    root.mkdir(parents=True)
    config = base.get_config(name)
    config.data.update(synthetic.SETS[name](root, count))
    started = time.perf_counter()
    dataset = data.load(config.data, config.seed)
    return config, dataset, time.perf_counter() - started


def measure_pipeline(
    config: ConfigDict, dataset: Dataset, programs: Programs, seconds: float
) -> dict[str, Any]:
    """Returns a row of the results: the rates of a pipeline and of the training step that it feeds.

    Args:
        config: the experiment.
        dataset: its data.
        programs: compiled programs, which are reused and added to.
        seconds: the shortest duration of each measurement of a round.
    """
    task = make_task(config)
    transform = task.make_transform(train=True)
    if dataset.augment:
        transform = AugmentFirst(dataset.augment, transform)
    source = dataset.splits["train"]
    program = find_program(
        programs,
        config,
        task,
        len(dataset.classes),
        count_steps(config, len(source)),
        transform(source[0], np.random.default_rng(0)),
        task.make_transform(train=False)(source[0]),
    )
    train = make_train_function(program, config.seed)

    def batches() -> Any:
        fresh = pipeline.train_batches(
            source,
            transform,
            batch_size=config.batch_size,
            seed=config.seed,
            num_threads=config.input.threads,
            num_workers=config.input.workers,
        )
        return contextlib.closing(fresh)

    # Prefetched batches would count as if they had cost nothing, so that many are skipped.
    prefetched = 2 * max(1, config.input.threads)
    with batches() as first:
        batch = next(first)
    alone, training, fed = [], [], []
    for _ in range(RUNS.value):
        with batches() as fresh:
            alone.append(measure_batch_seconds(next, fresh, 2 * prefetched, seconds))
        in_memory = itertools.repeat(batch)
        training.append(measure_batch_seconds(train, in_memory, prefetched, seconds))
        with batches() as fresh:
            fed.append(measure_batch_seconds(train, fresh, prefetched, seconds))
    return {
        "examples": len(source),
        "inputs": batch["inputs"].shape[1:],
        "batch": config.batch_size,
        "compile_seconds": program.cost["compile_seconds"],
        "input_per_second": config.batch_size / statistics.median(alone),
        "training_per_second": config.batch_size / statistics.median(training),
        "times_a_step": timing.compute_ratio(training, alone),
        "step_fed": timing.compute_ratio(fed, training),
    }


def make_train_function(program: Program, seed: int) -> Callable[[Iterator[pipeline.Batch]], None]:
    """Returns a function that takes a training step on an iterator's next batch, as the training loop does.

    One step runs while the next batch is fetched: the function returns when the previous step is done.
    """
    state, metrics = program.create_state(seed), {}

    def train(batches: Iterator[pipeline.Batch]) -> None:
        nonlocal state, metrics
        previous = metrics
        state, metrics = program.train_step(state, program.shard_batch(next(batches)))
        jax.block_until_ready(previous)

    return train


def measure_batch_seconds(
    work: Callable[[Iterator[pipeline.Batch]], Any],
    batches: Iterator[pipeline.Batch],
    skip: int,
    seconds: float,
) -> float:
    """Returns the seconds that `work` takes per batch, measured for at least `seconds` and one batch.

    The first batches do not count, until `skip` batches or `seconds` are over: by then the prefetched ones
    are used up, and the threads are at their pace.
    """
    work(batches)
    started, skipped = time.perf_counter(), 1
    while skipped < skip and time.perf_counter() - started < seconds:
        work(batches)
        skipped += 1
    started, count = time.perf_counter(), 0
    while not count or time.perf_counter() - started < seconds:
        work(batches)
        count += 1
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    cli.run_command(main, __doc__)
