"""Trains a study: every config with several seeds or on several folds, one run after the other."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import data
from experiments.configs.shared.overrides import override
from experiments.core.console import format_seconds, print_line
from experiments.core.errors import UserError
from experiments.core.words import count_noun
from experiments.data import folds
from experiments.runs.folder import InUseError
from experiments.train.control import make_control
from experiments.train.grid import PlannedRun, attempt_run, read_reason
from experiments.train.program import Programs
from experiments.train.validate import resolve_config

# Settings in which the runs of a study differ, or that their folders are named by.
DECIDED = ("seed", "data.fold", "data.folds", "name")


def check_paths(overridden: Sequence[str], swept: Sequence[str]) -> None:
    """Raises a UserError for the first path of --override or --sweep that would do nothing, or harm."""
    for flag, paths in (("--override", overridden), ("--sweep", swept)):
        for path in paths:
            if path in DECIDED:
                raise UserError(
                    f"{flag}={path}: a study numbers its runs by --seeds=N or --folds=N, and puts them into "
                    "folders with the names of the configs; leave it out."
                )
    for path in swept:
        if [*overridden, *swept].count(path) > 1:
            raise UserError(
                f"--sweep={path}: it is set twice; write all its values in one --sweep."
            )


def run_study(
    configs: Sequence[ConfigDict],
    workdir: Path,
    seeds: int,
    num_folds: int,
    control: bool,
    accept_new_data: bool = False,
) -> None:
    """Trains every config with every seed or on every fold; finished runs are not trained again.

    Args:
        configs: the configs to compare, with different names.
        workdir: the folder of the study; runs are in its folders `<config>/seed<N>` or `<config>/fold<N>`.
        seeds: the number of them.
        num_folds: the number of folds; 0 for seeds.
        control: whether to add a static network with as many parameters as the largest config.
        accept_new_data: whether to continue runs whose data has changed.

    Mistakes in a config are a UserError before anything is trained; so is the failure of all runs.
    """
    for config in configs:
        _check_config(config, configs, num_folds)
    if control and (equal := make_control(configs)):
        configs = [*configs, equal]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be used: {error}.") from error
    if num_folds:
        write_or_check_folds(configs[0], workdir, num_folds)
    runs = list(plan_runs(configs, workdir, seeds, num_folds))
    programs: Programs = {}
    failed, durations = [], []
    for number, run in enumerate(runs, start=1):
        run = dataclasses.replace(run, accept_new_data=accept_new_data)
        print_line()
        left = estimate_seconds_left(durations, len(runs) + 1 - number)
        eta = f", ETA {format_seconds(left)}" if left else ""
        print_line(f"run {number} of {len(runs)}: {run.workdir.relative_to(workdir)}{eta}")
        if number > 1 and run.config.name != runs[number - 2].config.name:
            programs.clear()  # other configs cannot use them
            gc.collect()
        was_finished, started = (run.workdir / "summary.json").exists(), time.monotonic()
        # The table at the start of the first run is much the same for all.
        try:
            succeeded = attempt_run(run, programs, brief=number > 1)
        except InUseError as error:
            print_line(f"failed: {error}")
            succeeded = False
        if not succeeded:
            failed.append(run)
        elif not was_finished:
            durations.append(time.monotonic() - started)
    if len(failed) == len(runs):
        raise UserError(
            f"All {count_noun(len(runs), 'run')} failed. The reason of the first: "
            f"{read_reason(runs[0].workdir)}"
        )
    if failed:
        print_line()
        print_line(f"{len(failed)} of {len(runs)} runs failed; the report lists the reasons.")


def estimate_seconds_left(durations: Sequence[float], runs: int) -> float | None:
    """Estimates the time of some runs from those of earlier ones; None if there are none."""
    return statistics.fmean(durations) * runs if durations else None


def plan_runs(
    configs: Sequence[ConfigDict], workdir: Path, seeds: int, num_folds: int
) -> Iterator[PlannedRun]:
    """Yields the runs of a study; a run that others start from comes before them."""
    for config in sorted(configs, key=lambda config: bool(config.start.config)):
        for number in range(num_folds or seeds):
            replicate = f"fold{number}" if num_folds else f"seed{number}"
            first = config.start.config
            start = workdir / first / replicate if first else None
            one = config.copy_and_resolve_references()
            with one.unlocked():
                if num_folds:
                    _set_fold(one, number, num_folds)
                else:
                    one.seed = number
                if start:
                    one.init_from = str(start)
            yield PlannedRun(one, workdir / config.name / replicate, start=start)


def write_or_check_folds(config: ConfigDict, workdir: Path, num_folds: int) -> None:
    """Writes `folds.csv`; raises a UserError if an existing one has other folds or is about other data."""
    settings = config.copy_and_resolve_references().data
    settings.fold = -1
    dataset = data.load(settings, config.seed)
    pooled = folds.pool_splits(dataset)
    assignment, _ = folds.assign_folds(pooled.labels, num_folds, seed=0)
    file = workdir / "folds.csv"
    if not file.exists():
        folds.write_folds(file, pooled, assignment, dataset.classes)
    elif not np.array_equal(folds.read_folds(file, pooled, dataset.classes), assignment):
        raise UserError(
            f"{file} assigns the examples to other folds than --folds={num_folds} does: choose another "
            "--workdir for the new folds."
        )


def _set_fold(config: ConfigDict, fold: int, num_folds: int) -> None:
    override(config, "data.fold", fold, "--folds: ")
    override(config, "data.folds", num_folds, "--folds: ")


def _check_config(config: ConfigDict, configs: Sequence[ConfigDict], num_folds: int) -> None:
    """Raises a UserError if a config cannot be trained in a study of these configs."""
    first, one = config.start.config, config.copy_and_resolve_references()
    if first and first not in {other.name for other in configs}:
        raise UserError(f"{config.name} starts from a trained {first}: add {first} to --configs.")
    with one.unlocked():
        if first:
            one.init_from = first  # the folder of that run is known only after it has been trained
        if num_folds:
            _set_fold(one, 0, num_folds)
    resolve_config(one)
