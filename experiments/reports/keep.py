"""Copies of runs that are small enough for a repository: what a report makes its tables and curves from."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.core.errors import UserError
from experiments.core.files import write_json, write_text
from experiments.runs.find import Run, is_run_folder, read_run
from experiments.runs.log import METRICS_FILE
from experiments.runs.schema import CHECKPOINTS, CONFIG_FILE, RANKING, SUMMARY_FILE


def keep_summaries(runs: Sequence[Run], folder: str | os.PathLike) -> list[Path]:
    """Copies settings, summary and evaluations of runs: a few kilobytes each, without weights and pictures.

    Paths are somebody's own: of those in the settings only the last part stays.

    Args:
        runs: finished runs, as `find_runs` returns them.
        folder: the copies lie in it as the runs lie in the folder that contains all of them.

    Returns:
        the folders of the copies; `find_runs` finds the same runs there.

    Raises:
        UserError: if a copy would replace a run or the copy of another one, or a log is damaged. Nothing is
            written then.
    """
    folders = [run.folder.resolve() for run in runs]
    common = os.path.commonpath([one.parent for one in folders]) if folders else ""
    copies = [Path(folder).expanduser() / one.relative_to(common) for one in folders]
    for run, copy in zip(runs, copies, strict=True):
        _check_place(run, copy)
    # All are read first: a damaged log leaves no half of the copies.
    logs = [_select_evaluations(run) for run in runs]
    for run, copy, rows in zip(runs, copies, logs, strict=True):
        write_json(copy / CONFIG_FILE, _shorten_paths(run.settings))
        write_json(copy / SUMMARY_FILE, run.summary)
        write_text(copy / METRICS_FILE, "".join(f"{json.dumps(row)}\n" for row in rows))
    return copies


def _check_place(run: Run, copy: Path) -> None:
    """Raises a UserError if the place of a copy is the folder of a run, or has a copy of another one."""
    if (copy / CHECKPOINTS).exists():
        raise UserError(f"{copy} is the folder of a run; choose another one for the copies.")
    if not is_run_folder(copy):
        return
    kept = read_run(copy)
    is_same = (kept.config, kept.dataset) == (run.config, run.dataset)
    if is_same and isinstance(kept, Run):
        is_same = kept.fold_and_seed == run.fold_and_seed and _is_continued(kept, run)
    if not is_same:
        raise UserError(
            f"{copy} has the copy of another run than {run.folder}; choose another folder for the copies."
        )


def _is_continued(kept: Run, run: Run) -> bool:
    """Returns whether a run is the one that was kept, or has trained further since."""
    digests = {one.summary.get("params_sha256") for one in (kept, run)}
    if None in digests or len(digests) == 1:
        return True
    before, now = (
        [(row["step"], row.get("loss")) for row in one.log if row.get("split") == "validation"]
        for one in (kept, run)
    )
    steps = [one.summary_number("steps") or 0 for one in (kept, run)]
    return steps[0] < steps[1] and now[: len(before)] == before


def _select_evaluations(run: Run) -> list[dict[str, Any]]:
    """Returns the evaluations in a run's log, with the metrics that rank alone."""
    return [
        {name: value for name, value in row.items() if name in ("step", "split", *RANKING)}
        for row in run.log
        if row.get("split") != "train"
    ]


def _shorten_paths(value: Any) -> Any:
    """Returns settings with the last part of each path alone."""
    if isinstance(value, dict):
        return {name: _shorten_paths(one) for name, one in value.items()}
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    return value
