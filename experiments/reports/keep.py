"""Copies of runs that are small enough for a repository: what a report makes its tables and curves from."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.core.errors import UserError
from experiments.core.files import write_json, write_text
from experiments.runs.find import Run
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
        UserError: if a copy would replace a run, or a run's log is damaged.
    """
    folders = [run.folder.resolve() for run in runs]
    common = os.path.commonpath([one.parent for one in folders]) if folders else ""
    copies = [Path(folder).expanduser() / one.relative_to(common) for one in folders]
    for run, copy in zip(runs, copies, strict=True):
        if (copy / CHECKPOINTS).exists():
            raise UserError(f"{copy} is the folder of a run; choose another one for the copies.")
        # Read first: a damaged log leaves no half of a copy.
        rows = [
            {name: value for name, value in row.items() if name in ("step", "split", *RANKING)}
            for row in run.log
            if row.get("split") != "train"
        ]
        write_json(copy / CONFIG_FILE, _shorten_paths(run.settings))
        write_json(copy / SUMMARY_FILE, run.summary)
        write_text(copy / METRICS_FILE, "".join(f"{json.dumps(row)}\n" for row in rows))
    return copies


def _shorten_paths(value: Any) -> Any:
    """Returns settings with the last part of each path alone."""
    if isinstance(value, dict):
        return {name: _shorten_paths(one) for name, one in value.items()}
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    return value
