"""Measures whether the input pipeline of each data set keeps ahead of a training step.

    python -m experiments.benchmarks.input --quick

    --sets=folder,voc2012   data sets; all if left out
    --runs=5                timed rounds; medians are shown
    --quick                 only digits and a folder of pictures, and shorter rounds, unless --sets says which
    --out=runs/benchmarks   where the table's numbers and plot go

Each pipeline runs as in training, with the reader, transforms, batch size, threads and workers of
`experiments/configs/base.py` for that data set, and so does the step: the static network, the fastest, is
the hardest to keep ahead of. The digits are real; the other sets are made up in a temporary folder, in the
files of the real ones. Those have been read before and lie in the memory of the system: a slow disk, or a
network's, is not measured.

A round measures three things one after the other, each behind a few batches that do not count:

    input           examples a second of the pipeline by itself
    training        examples a second of training steps on one batch from memory, over and over
    step, fed       how many times longer a step takes when the pipeline feeds it, on the same cores: what
                    training really loses. 1.00 would be a pipeline that costs nothing.

`times a step` is input over training; the goal is 3. `preparing` is what loading the set takes once: looking
at every file, and for Tiny ImageNet writing the records. Writes `input.json` and `input.png`.
"""

import contextlib
import itertools
import statistics
import sys
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
from experiments.benchmarks import results, synthetic, timing
from experiments.benchmarks.options import QUICK, RUNS
from experiments.configs import base
from experiments.core import cli
from experiments.core.errors import UserError, suggest_nearest
from experiments.data import Dataset, pipeline
from experiments.tasks import make_task
from experiments.train.optimizer import count_steps
from experiments.train.program import Program, find_program

SETS = flags.DEFINE_list("sets", [], "Data sets; all if left out.")

GOAL = 3  # times a step
QUICK_SETS = ("digits", "folder")


def main() -> None:
    """Prints a row for each data set as soon as it is measured."""
    names = SETS.value or (QUICK_SETS if QUICK.value else synthetic.SETS)
    for name in names:
        if name not in synthetic.SETS:
            raise UserError(
                f"--sets: there is no data set {name}{suggest_nearest(name, synthetic.SETS)}"
            )
    path = results.folder() / "input"
    machine = timing.machine()
    count, seconds = (128, 0.3) if QUICK.value else (512, 2.0)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        # All of them first: preparing has things to say, which would stand in the midst of the table.
        sets = {name: load(name, Path(temporary, name), count) for name in names}
        print(
            f"\n{machine['devices']} x {machine['device']}, {machine['cores']} cores; examples a second\n\n"
            f"{'':16}{'inputs':>14}{'batch':>7}{'preparing, s':>14}{'input':>9}{'training':>10}"
            f"{'times a step':>14}{'step, fed':>11}",
            flush=True,
        )
        programs: dict[str, Program] = {}
        for name, (config, dataset, preparing) in sets.items():
            row = {"preparing_seconds": preparing, **measure(config, dataset, programs, seconds)}
            rows[name] = row
            print(
                f"{name:16}{' x '.join(map(str, row['inputs'])):>14}{row['batch']:7}"
                f"{row['preparing_seconds']:14.1f}{row['input_per_second']:9,.0f}"
                f"{row['training_per_second']:10,.1f}{row['times_a_step']:14.1f}"
                f"{row['step_fed']:11.2f}",
                flush=True,
            )
    results.write(
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


def load(name: str, root: Path, count: int) -> tuple[ConfigDict, Dataset, float]:
    """Makes up a data set below a folder and loads it: (its config, the set, the seconds of loading)."""
    root.mkdir(parents=True)
    config = base.get_config(name)
    config.data.update(synthetic.SETS[name](root, count))
    started = time.perf_counter()
    dataset = data.load(config.data, config.seed)
    return config, dataset, time.perf_counter() - started


def measure(
    config: ConfigDict, dataset: Dataset, programs: dict[str, Program], seconds: float
) -> dict[str, Any]:
    """The rates of a pipeline and of the training step that it feeds.

    Args:
        config: the experiment.
        dataset: its data.
        programs: compiled programs, to be used again and added to.
        seconds: how long each measurement of a round lasts at least.

    Returns:
        `examples` (to train on), `inputs` (the shape of one), `batch` (the examples of one),
        `compile_seconds`, the medians `input_per_second` and `training_per_second`, and the medians of
        each round's ratios `times_a_step` and `step_fed`.
    """
    task = make_task(config)
    transform = {train: task.make_transform(train=train) for train in (True, False)}
    source = dataset.splits["train"]
    program = find_program(
        programs,
        config,
        task,
        len(dataset.classes),
        count_steps(config, len(source)),
        transform[True](source[0], np.random.default_rng(0)),
        transform[False](source[0]),
    )
    train = trainer(program, config.seed)

    def batches() -> Any:
        return contextlib.closing(
            pipeline.train_batches(
                source,
                transform[True],
                batch_size=config.batch_size,
                seed=config.seed,
                num_threads=config.input.threads,
                num_workers=config.input.workers,
            )
        )

    # As many as are prepared ahead: they would count as if they had cost nothing.
    ahead = 2 * max(1, config.input.threads)
    with batches() as first:
        batch = next(first)
    alone, training, fed = [], [], []
    for _ in range(RUNS.value):
        with batches() as fresh:
            alone.append(steady(next, fresh, 2 * ahead, seconds))
        training.append(steady(train, itertools.repeat(batch), ahead, seconds))
        with batches() as fresh:
            fed.append(steady(train, fresh, ahead, seconds))
    return {
        "examples": len(source),
        "inputs": batch["inputs"].shape[1:],
        "batch": config.batch_size,
        "compile_seconds": program.cost["compile_seconds"],
        "input_per_second": config.batch_size / statistics.median(alone),
        "training_per_second": config.batch_size / statistics.median(training),
        "times_a_step": timing.ratio(training, alone),
        "step_fed": timing.ratio(fed, training),
    }


def trainer(program: Program, seed: int) -> Callable[[Iterator[pipeline.Batch]], None]:
    """A function that takes a training step on an iterator's next batch, as the training loop does.

    One step is in flight while the next batch is fetched: it returns when the step before is done.
    """
    state, metrics = program.create_state(seed), {}

    def train(batches: Iterator[pipeline.Batch]) -> None:
        nonlocal state, metrics
        before = metrics
        state, metrics = program.train_step(state, program.shard_batch(next(batches)))
        jax.block_until_ready(before)

    return train


def steady(
    work: Callable[[Iterator[pipeline.Batch]], Any],
    batches: Iterator[pipeline.Batch],
    skip: int,
    seconds: float,
) -> float:
    """The seconds that a batch takes `work`, measured for so many seconds or one batch, if that is longer.

    Before that, `skip` batches do not count, or as many as take just as long: by then those that could be
    prepared ahead have been, and threads have come to their pace.
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
    cli.leave(cli.run(main, sys.argv, __doc__))
