"""What was compared: the recipe that all configs share, and what each changes of its baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from experiments.configs.relevance import unused
from experiments.reports.comparison import Comparison, Row
from experiments.reports.tables import Table
from experiments.runs.find import Run

# What the runs of one config differ in by nature, and what is no setting of the training.
_OF_A_RUN = {
    "seed", "data.fold", "data.source", "data.dir", "init_from", "input.threads", "input.workers",
}  # fmt: skip
_FILES_OF_A_RUN = {"audio.splits", "data.extra_train"}
_NAMES = {
    "name",
    "label",
    "baseline",
    "dataset",
    "command",
    "log_every",
    "checkpoint_every",
    "tensorboard",
    "wandb",
}
# What a reader asks for first, in this order, where it is set to something.
_RECIPE = (
    "optimizer", "stages", "batch_size", "epochs", "steps", "plateau", "early_stopping", "augment", "mixing",
    "average", "image_size", "audio", "spectrogram", "dtype", "model", "tagging", "gan", "autoencoder",
    "series", "conv", "head", "temperature", "auxiliary", "start", "data",
)  # fmt: skip


def flat(run: Run) -> dict[str, Any]:
    """A run's settings by dotted name, but for those in which the runs of a config differ by nature."""
    settings = traverse_util.flatten_dict(dict(run.settings), sep=".")
    return {name: value for name, value in settings.items() if name not in _OF_A_RUN | _NAMES}


def recipe(row: Row) -> str:
    """The settings of a config's first run in one line; '' where they are not known."""
    known = flat(row.runs[0])
    # A start's settings are told where one is a part of the config.
    meaningless = [*unused(known), *([] if known.get("start.config") else ["start."])]
    said = [
        f"{name}={_plain(value)}"
        for group in _RECIPE
        for name, value in known.items()
        if name.partition(".")[0] == group
        and value not in (None, "", 0, 0.0, False, -1, "none")
        and not name.startswith(tuple(meaningless))
    ]
    return ", ".join(said)


def changes(comparison: Comparison) -> Table | None:
    """What each config changes of its baseline's settings; None where no settings are known."""
    by_name = {row.config: row for row in comparison.rows}
    lines = []
    for row in comparison.rows:
        baseline = by_name.get(row.runs[0].baseline, comparison.rows[0])
        if baseline is row or not flat(row.runs[0]) or not flat(baseline.runs[0]):
            continue
        mine, theirs = flat(row.runs[0]), flat(baseline.runs[0])
        changed = [
            f"{name}={_plain(mine[name])}" for name in _differing(mine, theirs) if name in mine
        ]
        lines.append([row.label, baseline.label, ", ".join(changed) or "nothing"])
    title = f"{comparison.dataset}: what each config changes"
    return Table(title, ["config", "baseline", "changed settings"], lines, 3) if lines else None


def unlike(row: Row) -> list[str]:
    """The settings in which the runs of one config differ, though they are averaged."""
    # Of files that each seed has for itself it matters whether there are any.
    every = [
        {
            name: bool(value) if name in _FILES_OF_A_RUN else value
            for name, value in flat(run).items()
        }
        for run in row.runs
        if run.settings
    ]
    return sorted({name for one in every[1:] for name in _differing(every[0], one)})


def commands(rows: Sequence[Row]) -> list[str]:
    """How each config's first run was started, where it is known."""
    found = [
        row.runs[0].summary.get("command") or row.runs[0].settings.get("command") for row in rows
    ]
    return [str(command) for command in found if command]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = {**one, **other}
    return [name for name in names if one.get(name) != other.get(name)]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
