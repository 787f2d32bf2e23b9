"""Compares configs on a data set: trains each with several seeds, or on several folds, and reports.

    python -m experiments.study --dataset=digits --configs=base,global_soft,local_soft,hard,odconv --seeds=3

    --dataset=NAME          as in a config's argument: digits, adiac, voc2012, tiny_imagenet, folder, ...
    --configs=A,B           files of experiments/configs, without .py; those of the study if left out.
                            A:KEY=VALUE is what A.py:DATASET,KEY=VALUE is
    --seeds=N               runs of each config, with seeds 0 to N-1
    --folds=N               instead: one run for each of N stratified folds of all splits together
    --source=PATH           where the data lies
    --override=KEY=VALUE    a field of every config, such as epochs=5; may be given several times
    --sweep=KEY=A,B,...     every config with each of these values; of several sweeps, with all combinations
    --control=False         leaves out the static network with as many parameters as the largest config
    --workdir=runs/NAME     where the study lives; without it runs/study-<dataset>
    --debug                 shows the traceback of an error

The same command again continues a study that was stopped, at the run and the step where it was. A run that
fails is reported, and the others go on; it is tried again next time.
"""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dyn.diagnostics import count_parameters
from experiments import data
from experiments.configs.shared.overrides import override, override_all, split_override
from experiments.configs.shared.overrides import sweep as sweep_configs
from experiments.core import cli
from experiments.core.errors import UserError
from experiments.data import folds
from experiments.reports import report
from experiments.tasks import make_task
from experiments.train.grid import Planned, attempt, load_config
from experiments.train.program import Program
from experiments.train.validate import resolve_config

# A control is worth its time where the largest network has so many times the parameters of the base.
WORTH_A_CONTROL = 1.2


def main(
    *,
    dataset: str = "digits",
    configs: str = "base,global_soft,local_soft,hard,odconv",
    seeds: int = 1,
    folds: int = 0,
    source: str = "",
    override: Sequence[str] = (),
    sweep: Sequence[str] = (),
    control: bool = True,
    workdir: str = "",
) -> None:
    """Runs the study that the flags describe."""
    if not 1 <= seeds <= 1000:
        raise UserError(f"--seeds={seeds}: choose 1 to 1000 runs of each config.")
    if folds < 0:
        raise UserError(f"--folds={folds}: choose 2 or more, or 0 for the data set's own splits.")
    names = list(filter(None, configs.split(",")))
    if not names or len(set(names)) < len(names):
        raise UserError(f"--configs={configs}: name one or more configs, each of them once.")
    cli.keep_compiled()
    planned = [load_config(name, dataset) for name in names]
    if source:
        override_all(planned, "data.source", source, "--source")
    for text in override:
        override_all(planned, *split_override(text, "--override"))
    grid = {
        key: values.split(",")
        for key, values in (split_override(text, "--sweep") for text in sweep)
    }
    folder = Path(workdir or f"runs/study-{dataset.partition(',')[0]}").expanduser()
    run_study(sweep_configs(planned, grid), folder, seeds, folds, control)


def run_study(
    configs: Sequence[ConfigDict], workdir: Path, seeds: int, num_folds: int, control: bool
) -> None:
    """Trains every config with every seed or on every fold, and writes the report.

    Args:
        configs: one for each row of the report's table.
        workdir: where the study lives; each run has a folder `<config>/seed<N>` or `<config>/fold<N>` there.
        seeds: number of seeds.
        num_folds: number of folds, 0 for seeds.
        control: whether to add a static network with as many parameters as the largest one.

    Raises:
        UserError: for what is wrong with a config, before anything is trained; and if every run fails.
    """
    for config in configs:
        _check(config, configs, num_folds)
    if control:
        configs = [*configs, *make_control(configs)]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be used: {error}.") from error
    if num_folds:
        write_folds(configs[0], workdir, num_folds)
    runs = list(plan(configs, workdir, seeds, num_folds))
    programs: dict[str, Program] = {}
    failed = 0
    for number, run in enumerate(runs, start=1):
        print(f"\nrun {number} of {len(runs)}: {run.workdir.relative_to(workdir)}", flush=True)
        if number > 1 and run.config.name != runs[number - 2].config.name:
            programs.clear()  # nobody will ask for them again
            gc.collect()
        failed += not attempt(run, programs)
    if failed == len(runs):
        reason = (runs[0].workdir / "error.txt").read_text()
        raise UserError(f"All {failed} runs failed, the first of them like this: {reason}")
    if failed:
        print(f"\n{failed} of {len(runs)} runs failed; the report says why.")
    report.write_report([workdir], workdir)
    print(f"\nreport   {workdir / 'report.md'}\nfigures  {workdir / 'figures'}")


def plan(
    configs: Sequence[ConfigDict], workdir: Path, seeds: int, num_folds: int
) -> Iterator[Planned]:
    """The runs of a study, those that others start from before those."""
    ordered = sorted(configs, key=lambda config: bool(config.start.config))
    for config in ordered:
        for number in range(num_folds or seeds):
            replicate = f"fold{number}" if num_folds else f"seed{number}"
            one = config.copy_and_resolve_references()
            with one.unlocked():
                if num_folds:
                    _set_fold(one, number, num_folds)
                else:
                    one.seed = number
                if config.start.config:
                    one.init_from = str(workdir / config.start.config / replicate)
            yield Planned(one, workdir / config.name / replicate)


def make_control(configs: Sequence[ConfigDict]) -> list[ConfigDict]:
    """The first static config, widened to the parameters of the largest one; none if that is near.

    Every config's network is asked for its shapes alone.
    """
    # Of other networks, `config.model` does not say how wide they are.
    static = next(
        (
            config
            for config in configs
            if config.conv.name == "conv"
            and "attention" in config
            and config.attention.name == "none"
        ),
        None,
    )
    if static is None:
        return []
    wanted = max(map(parameters_of, configs))
    if wanted < WORTH_A_CONTROL * parameters_of(static):
        return []
    low, high = static.model.width, 16 * static.model.width
    while low < high:  # the narrowest that has no fewer
        middle = (low + high) // 2
        low, high = (
            (low, middle)
            if parameters_of(widened(static, middle)) >= wanted
            else (middle + 1, high)
        )
    return [widened(static, low)]


def widened(config: ConfigDict, width: int) -> ConfigDict:
    """A copy with another width, and a name that says so."""
    wide = config.copy_and_resolve_references()
    with wide.unlocked():
        wide.model.width, wide.name = width, f"{config.name}_w{width}"
    return wide


def parameters_of(config: ConfigDict) -> int:
    """The number of parameters of a config's network for ten classes; nothing is computed.

    Raises:
        UserError: if the network cannot be built.
    """
    series = config.data.name == "ucr"
    model = make_task(config).make_model(num_classes=10, spatial_axes=1 if series else 2)
    # Pictures of 64 pixels, series of 64 samples: parameters do not depend on it.
    example = jax.ShapeDtypeStruct((2, 64, 1) if series else (2, 64, 64, 3), np.float32)
    try:
        shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), example)
    except ValueError as error:
        raise UserError(f"The network of {config.name} cannot be built: {error}") from error
    return count_parameters(shapes["params"])


def write_folds(config: ConfigDict, workdir: Path, num_folds: int) -> None:
    """Writes `folds.csv`, or checks the one that is there.

    Raises:
        UserError: if the one that is there is about other data.
    """
    settings = config.copy_and_resolve_references().data
    settings.fold = -1
    dataset = data.load(settings, config.seed)
    everything = folds.pool_splits(dataset)
    assignment, _ = folds.assign_folds(everything.labels, num_folds, seed=0)
    file = workdir / "folds.csv"
    if not file.exists():
        folds.write_folds(file, everything, assignment, dataset.classes)
    elif not np.array_equal(folds.read_folds(file, everything, dataset.classes), assignment):
        raise UserError(
            f"{file} deals the examples out to other folds than --folds={num_folds} does: choose another "
            "--workdir for the new folds."
        )


def _set_fold(config: ConfigDict, fold: int, num_folds: int) -> None:
    override(config, "data.fold", fold, "--folds: ")
    override(config, "data.folds", num_folds, "--folds: ")


def _check(config: ConfigDict, configs: Sequence[ConfigDict], num_folds: int) -> None:
    """Whether a config can be run as part of this study."""
    first, one = config.start.config, config.copy_and_resolve_references()
    if first and first not in {other.name for other in configs}:
        raise UserError(f"{config.name} starts from a trained {first}: add {first} to --configs.")
    with one.unlocked():
        if first:
            one.init_from = first  # its place is known only when it has been trained
        if num_folds:
            _set_fold(one, 0, num_folds)
    resolve_config(one)


if __name__ == "__main__":
    cli.run_command(main, __doc__)
