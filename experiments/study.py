"""Compares configs on a data set: trains each with several seeds, or on several folds, and reports.

    python -m experiments.study --dataset=digits --configs=base,global_soft,local_soft,hard,odconv --seeds=3

    --dataset=NAME          as in a config's argument: digits, adiac, voc2012, tiny_imagenet, folder, ...
    --configs=A,B           files of experiments/configs, without .py; without it the five that
                            Bhati and Sherawat compare (Comprehensive Study Dynamic CNN).
                            A:KEY=VALUE stands for A.py:DATASET,KEY=VALUE
    --seeds=N               runs of each config, with seeds 0 to N-1; without it one
    --folds=N               instead: one run for each of N stratified folds of all splits together
    --source=PATH           the folder or file of the data
    --override=KEY=VALUE    a setting of all configs that have it, such as epochs=5; may be repeated.
                            python -m experiments.main --config=NAME --help lists them
    --sweep=KEY=A,B,...     every config with each of these values; several sweeps are combined
    --control=False         leaves out the static network with as many parameters as the largest config
    --accept_new_data       continues runs though their data has changed
    --workdir=runs/NAME     the folder of the study; without it runs/study-<dataset>, or study-<dataset>-smoke
    --debug                 shows the traceback of an error

The same command again continues a study that was stopped, at the run and the step where it was. A run that
fails is reported, and the others go on; the next time it is tried again.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.configs.shared.overrides import check_used, override_all, split_override
from experiments.configs.shared.overrides import sweep as sweep_configs
from experiments.core import cli
from experiments.core.console import print_line
from experiments.core.errors import UserError
from experiments.reports.report import write_report
from experiments.train.grid import load_config
from experiments.train.study import check_paths, run_study


def main(
    *,
    dataset: str = "digits",
    configs: str = "base,global_soft,local_soft,hard,odconv",
    seeds: int | None = None,
    folds: int = 0,
    source: str = "",
    override: Sequence[str] = (),
    sweep: Sequence[str] = (),
    control: bool = True,
    accept_new_data: bool = False,
    workdir: str = "",
) -> None:
    """Runs the study that the flags describe, and writes its report."""
    if seeds is not None and not 1 <= seeds <= 1000:
        raise UserError(f"--seeds={seeds}: choose 1 to 1000 runs of each config.")
    if folds < 0:
        raise UserError(f"--folds={folds}: choose 2 or more, or 0 for the data set's own splits.")
    if seeds is not None and folds:
        raise UserError(
            f"--seeds={seeds} --folds={folds}: folds take the place of seeds; give one of them."
        )
    names = [name for name in configs.split(",") if name]
    if not names or len(set(names)) < len(names):
        raise UserError(f"--configs={configs}: name one or more configs, each of them once.")
    cli.keep_compiled()
    compared = [load_config(name, dataset) for name in names]
    called = [config.name for config in compared]
    if shared := [name for name in called if called.count(name) > 1]:
        raise UserError(
            f"--configs={configs}: more than one is called {shared[0]}, and they would share its folder; "
            "study each in its own --workdir."
        )
    overrides = [split_override(text, "--override") for text in override]
    sweeps = [split_override(text, "--sweep") for text in sweep]
    check_paths([path for path, _ in overrides], [path for path, _ in sweeps])
    if source:
        override_all(compared, "data.source", source, "--source")
    for path, value in overrides:
        override_all(compared, path, value)
    check_used(compared, dict(overrides), "--override")
    compared = sweep_configs(compared, {path: text.split(",") for path, text in sweeps})
    folder = Path(workdir or f"runs/study-{compared[0].dataset.lower()}").expanduser()
    run_study(compared, folder, seeds or 1, folds, control, accept_new_data)
    write_report([folder], folder)
    print_line()
    print_line(f"report   {folder / 'report.md'}")
    print_line(f"figures  {folder / 'figures'}")


if __name__ == "__main__":
    cli.run_command(main, __doc__)
