"""Finding the runs below some folders, and reading what each has left."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.core.errors import UserError
from experiments.runs.log import METRICS_FILE, read_rows

# Any of these makes a folder a run's.
MARKS = ("config.json", "summary.json", "error.txt")
UNRANKED = (
    "finished, and there is no metric to compare it by: it is a GAN's, and experiments.generate --judge "
    "looks at its pictures"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: where it lives.
        config: its config's name.
        label: what its config is called in tables and figures.
        dataset: the name of its data set.
        seed: its seed.
        fold: the fold it was tested on; None for the data set's own splits.
        baseline: the config that it is compared with.
        metric: the name of the test metric that counts most.
        summary: `summary.json`.
        settings: `config.json`; empty where it cannot be read.
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

    @property
    def key(self) -> tuple[int, int]:
        """What runs of different configs must share to be compared: (fold, seed)."""
        return (-1 if self.fold is None else self.fold, self.seed)

    @property
    def place(self) -> str:
        """Which of a config's runs it is, in words."""
        return f"seed {self.seed}" if self.fold is None else f"fold {self.fold}"

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`.

        Raises:
            UserError: if the file is damaged.
        """
        return read_rows(self.folder / METRICS_FILE)

    def test(self, name: str) -> float | None:
        """A test metric; None where there is none."""
        return number(self.summary["test"].get(name))

    def cost(self, name: str) -> float | None:
        """Any other number of the summary; None where there is none."""
        return number(self.summary.get(name))


@dataclasses.dataclass(frozen=True)
class Problem:
    """A run that is in no table.

    Attributes:
        folder: where it lives.
        config: its config's name, as far as it is known.
        dataset: the name of its data set, as far as it is known.
        reason: why, in words.
    """

    folder: Path
    config: str
    dataset: str
    reason: str


def find(folders: Iterable[str | os.PathLike]) -> tuple[list[Run], list[Problem]]:
    """Reads all runs at and below some folders.

    Of several finished runs of one config, data set, fold and seed, the one that was finished last counts.

    Args:
        folders: where to look. A run's own folder is not looked into further.

    Returns:
        The finished runs, and what is wrong with the others, both by data set, config, fold and seed.

    Raises:
        UserError: if one of the folders does not exist.
    """
    runs: dict[tuple[Any, ...], Run] = {}
    problems = []
    for folder in sorted({path for start in folders for path in _run_folders(Path(start))}):
        found = read(folder)
        if isinstance(found, Problem):
            problems.append(found)
            continue
        key = (found.dataset, found.config, found.key)
        if key in runs:
            older, found = sorted((runs[key], found), key=_finished)
            newer = "/".join(found.folder.parts[-2:])
            reason = f"finished before {newer}, a run of the same config and {found.place}"
            problems.append(Problem(older.folder, older.config, older.dataset, reason))
        runs[key] = found
    problems.sort(key=lambda problem: (problem.dataset, problem.config, str(problem.folder)))
    return [runs[key] for key in sorted(runs)], problems


def _run_folders(start: Path) -> Iterator[Path]:
    """The folders of runs at and below a folder."""
    if not start.is_dir():
        raise UserError(f"There is no folder {start} to look for runs in.")
    for folder, below, files in os.walk(start.resolve()):
        if set(MARKS) & set(files):
            yield Path(folder)
            below.clear()


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / mark).exists() for mark in MARKS)


def _finished(run: Run) -> float:
    return (run.folder / "summary.json").stat().st_mtime


def read(folder: Path) -> Run | Problem:
    """Reads one run."""
    try:
        settings = _json(folder / "config.json")
    except UserError:
        settings = {}  # what counts is the summary
    file = folder / "summary.json"
    known = (str(settings.get("name") or folder.name), str(settings.get("dataset") or "unknown"))
    if not file.exists():
        return Problem(folder, *known, _why_unfinished(folder))
    try:
        summary = _json(file)
    except UserError as error:
        return Problem(folder, *known, str(error))

    test = summary.get("test")
    test = test if isinstance(test, Mapping) else {}
    if "metric" in summary and summary["metric"] is None:
        return Problem(folder, *known, UNRANKED)
    metric = str(summary.get("metric") or ("miou" if "miou" in test else "accuracy"))
    if number(test.get(metric)) is None:
        return Problem(folder, *known, f"its summary.json has no test {metric}")
    config = str(summary.get("config") or known[0])
    seed = summary.get("seed", settings.get("seed", 0))
    fold = summary.get("fold", (settings.get("data") or {}).get("fold"))
    return Run(
        folder=folder,
        config=config,
        label=str(summary.get("label") or config),
        dataset=str(summary.get("dataset") or known[1]),
        seed=seed if isinstance(seed, int) else 0,
        fold=fold if isinstance(fold, int) and fold >= 0 else None,
        baseline=str(summary.get("baseline") or "base"),
        metric=metric,
        summary={**summary, "test": test},
        settings=settings,
    )


def _why_unfinished(folder: Path) -> str:
    file = folder / "error.txt"
    if file.exists():
        text = " ".join(file.read_text(encoding="utf-8", errors="replace").split())
        return f"failed: {text}" if text else "failed, and its error.txt is empty"
    try:
        steps = [row["step"] for row in read_rows(folder / METRICS_FILE)]
    except UserError as error:
        return f"not finished: {error}"
    return f"not finished: stopped after step {max(steps):,}" if steps else "not finished"


def _json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: if the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file.name} holds no JSON object")
    return value


def number(value: object) -> float | None:
    """The value if it is a number that says something, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
