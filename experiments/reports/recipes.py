"""Lists the settings of runs: the recipe that all configs share, and what each changes of its baseline."""

import itertools
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from experiments.configs.shared.assemble import drop_unused
from experiments.configs.shared.settings import NOT_TRAINING
from experiments.reports.comparison import ConfigResults, DatasetComparison
from experiments.reports.tables import Table

# The runs of one config differ in these by design.
_PER_RUN = {"seed", "data.fold", "init_from"}
_FILES_PER_RUN = {"audio.splits", "data.extra_train"}
# The settings of a recipe, what a reader looks for first; others are left out.
_RECIPE = (
    "optimizer", "stages", "batch_size", "epochs", "steps", "plateau", "early_stopping", "augment", "mixing",
    "average", "image_size", "audio", "spectrogram", "dtype", "model", "tagging", "events", "gan",
    "autoencoder", "series", "conv", "head", "detector", "temperature", "auxiliary", "start", "data",
)  # fmt: skip
_SWITCHED_OFF = (None, "", 0, False, -1, "none")


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run's training, from its `config.json`, by dotted name."""
    # Runs of older versions wrote the settings of other tasks and data, too.
    flat = traverse_util.flatten_dict(drop_unused(settings), sep=".")
    return {name: value for name, value in flat.items() if name not in _PER_RUN | NOT_TRAINING}


def list_recipe(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lists the settings of a run that are switched on, by dotted name; none if they are not known."""
    flat = flatten_settings(settings)
    return [
        (name, _format(value))
        for section in _RECIPE
        for name, value in flat.items()
        if name.partition(".")[0] == section and value not in _SWITCHED_OFF
    ]


def describe_recipe(results: ConfigResults) -> str:
    """Lists the settings of a config's first run in one line; '' if they are not known."""
    return ", ".join(f"{name}={value}" for name, value in list_recipe(results.runs[0].settings))


def make_changes_table(comparison: DatasetComparison) -> Table | None:
    """Returns the settings that each config changes of its baseline; None if no settings are known."""
    by_config = {results.config: results for results in comparison.results}
    rows = []
    for results in comparison.results:
        baseline = by_config.get(results.runs[0].baseline, comparison.results[0])
        mine, theirs = (flatten_settings(one.runs[0].settings) for one in (results, baseline))
        if baseline is results or not mine or not theirs:
            continue
        differing = _list_differing(mine, theirs)
        changes = [f"{name}={_format(mine[name])}" for name in differing if name in mine]
        rows.append([results.label, baseline.label, ", ".join(changes) or "nothing"])
    title = f"{comparison.title}: what each config changes"
    headings = ["config", "baseline", "changed settings"]
    return Table(title, headings, rows, words=3) if rows else None


def list_inconsistent(results: ConfigResults) -> list[str]:
    """Lists the settings in which the runs of one config differ, though they are averaged."""
    # Each seed has its own files: it only matters whether there are any.
    settings = [flatten_settings(run.settings) for run in results.runs if run.settings]
    for name, other in itertools.product(_FILES_PER_RUN, settings):
        other[name] = bool(other.get(name))
    return sorted({n for other in settings[1:] for n in _list_differing(settings[0], other)})


def _list_differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def _format(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
