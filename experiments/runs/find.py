"""Finds the runs below folders and reads what each of them has left."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.configs.shared.limits import check_saved_settings
from experiments.core.errors import UserError
from experiments.core.files import read_small_file
from experiments.runs.log import METRICS_FILE, read_rows
from experiments.runs.schema import (
    CONFIG_FILE,
    SUMMARY_FILE,
    read_settings,
    read_summary,
)

RUN_FILES = (CONFIG_FILE, SUMMARY_FILE, "error.txt")  # any of them makes a folder a run's
UNRANKED = (
    "finished, but has no metric to compare by: it is a GAN, and experiments.generate --judge rates its "
    "pictures"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: the run's workdir.
        config: the name of its config.
        label: the name of its config in tables and figures.
        fold: the fold that it was tested on; None for the data set's own splits.
        baseline: the config that it is compared with.
        metric: the test metric that runs are ranked by.
        summary: the content of `summary.json`.
        settings: the content of `config.json`; empty if the file cannot be read.
        trouble: the reason why it cannot; '' if it can.
    """

    folder: Path
    config: str
    label: str
    dataset: str
    seed: int
    fold: int | None
    baseline: str
    metric: str
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    trouble: str = ""

    @property
    def fold_and_seed(self) -> tuple[int, int]:
        """The pair that runs of two configs must share to be compared; the fold is -1 without folds."""
        return (-1 if self.fold is None else self.fold, self.seed)

    @property
    def replicate(self) -> str:
        """The fold or the seed, in words."""
        return f"seed {self.seed}" if self.fold is None else f"fold {self.fold}"

    @functools.cached_property
    def log(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a damaged one is a UserError."""
        return read_rows(self.folder / METRICS_FILE)

    def test_metric(self, name: str) -> float | None:
        """Returns a test metric; None if it is missing or not finite."""
        return finite_or_none(self.summary["test"].get(name))

    def summary_number(self, name: str) -> float | None:
        """Returns another number of the summary; None if it is missing or not finite."""
        return finite_or_none(self.summary.get(name))


@dataclasses.dataclass(frozen=True)
class ExcludedRun:
    """A run that cannot be compared, for a reason in words; config and data set as far as they are known."""

    folder: Path
    config: str
    dataset: str
    reason: str


def find_runs(folders: Iterable[str | os.PathLike]) -> tuple[list[Run], list[ExcludedRun]]:
    """Reads all runs at and below some folders: the finished ones, and those that cannot be compared.

    Both are sorted by data set and config. Of several finished runs of one config, data set, fold and seed,
    the one that finished last counts. Folders inside a run's are not searched.

    Raises:
        UserError: if one of the folders does not exist.
    """
    runs: dict[tuple[Any, ...], Run] = {}
    excluded = []
    for folder in sorted({path for start in folders for path in _list_run_folders(Path(start))}):
        run = read_run(folder)
        if isinstance(run, ExcludedRun):
            excluded.append(run)
            continue
        key = (run.dataset, run.config, run.fold_and_seed)
        if key in runs:
            both = (runs[key], run)
            older, run = sorted(both, key=lambda one: (one.folder / "summary.json").stat().st_mtime)
            newer = "/".join(run.folder.parts[-2:])
            reason = f"finished before {newer}, a run of the same config and {run.replicate}"
            excluded.append(ExcludedRun(older.folder, older.config, older.dataset, reason))
        runs[key] = run
    excluded.sort(key=lambda run: (run.dataset, run.config, str(run.folder)))
    return [runs[key] for key in sorted(runs)], excluded


def is_run_folder(folder: Path) -> bool:
    """Returns whether a folder is that of a run."""
    return any((folder / name).exists() for name in RUN_FILES)


def read_run(folder: Path) -> Run | ExcludedRun:
    """Reads one run."""
    settings, trouble = _read_settings(folder)
    config = str(settings.get("name") or folder.name)
    dataset = str(settings.get("dataset") or "unknown")
    try:
        summary = read_summary(folder)
    except UserError as error:
        return ExcludedRun(folder, config, dataset, str(error).replace(f"{folder}/", ""))
    if summary is None:
        return ExcludedRun(folder, config, dataset, _explain_unfinished(folder))
    test = summary.get("test") or {}
    if "metric" in summary and summary["metric"] is None:
        return ExcludedRun(folder, config, dataset, UNRANKED)
    # Summaries of earlier versions lack some of these fields.
    metric = str(summary.get("metric") or ("miou" if "miou" in test else "accuracy"))
    if finite_or_none(test.get(metric)) is None:
        return ExcludedRun(folder, config, dataset, f"its summary.json has no test {metric}")
    config = str(summary.get("config") or config)
    seed = summary.get("seed", settings.get("seed", 0))
    fold = summary.get("fold", settings.get("data", {}).get("fold"))
    return Run(
        folder=folder,
        config=config,
        label=str(summary.get("label") or config),
        dataset=str(summary.get("dataset") or dataset),
        seed=seed if isinstance(seed, int) else 0,
        fold=fold if isinstance(fold, int) and fold >= 0 else None,
        baseline=str(summary.get("baseline") or "base"),
        metric=metric,
        summary={**summary, "test": test},
        settings=settings,
        trouble=trouble,
    )


def finite_or_none(value: object) -> float | None:
    """Returns the value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _list_run_folders(start: Path) -> Iterator[Path]:
    """Yields the folders of runs at and below a folder."""
    if not start.is_dir():
        raise UserError(f"There is no folder {start} to look for runs in.")
    for folder, subfolders, files in os.walk(start.resolve()):
        if set(RUN_FILES) & set(files):
            yield Path(folder)
            subfolders.clear()


def _read_settings(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns the settings of a run, and why there are none: the summary has all that a comparison needs."""
    try:
        settings = read_settings(folder)
        if settings is None:
            return {}, f"{CONFIG_FILE} is missing"
        check_saved_settings(settings, folder / CONFIG_FILE)
        return settings, ""
    except UserError as error:
        return {}, str(error)


def _explain_unfinished(folder: Path) -> str:
    try:
        content = read_small_file(folder / "error.txt")
        text = " ".join(content.decode("utf-8", errors="replace").split())
        return f"failed: {text}" if text else "failed, and its error.txt is empty"
    except FileNotFoundError:
        pass
    except UserError as error:
        return f"failed: {error}"
    try:
        steps = [row["step"] for row in read_rows(folder / METRICS_FILE)]
    except UserError as error:
        return f"not finished: {error}"
    return f"not finished: stopped after step {max(steps):,}" if steps else "not finished"
