"""The form of each JSON file in a run's folder, and the functions that read these files for everybody.

The folder may be from an older version, from somebody else, or damaged: a file that does not have its form is
a UserError that names it and the first thing that is wrong. Fields that a version before did not write may be
missing everywhere; a reader names those that it cannot do without.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.shared.assemble import restore_config
from experiments.core.checked_json import (
    Anything,
    Flag,
    ListOf,
    MapOf,
    Metric,
    Nullable,
    Number,
    Numbers,
    Record,
    Text,
    read_json,
)
from experiments.core.errors import UserError

CONFIG_FILE, SUMMARY_FILE, CHECKPOINTS = "config.json", "summary.json", "checkpoints"
DATA_FILE = "data.json"
MAX_CLASSES = 100_000
CONTINUES = "Delete it, and the run continues from its last checkpoint."

COUNT = Number(0, 2**53, whole=True)
AMOUNT = Nullable(Number(0))
# The metrics that rank evaluations.
RANKING = ("loss", "accuracy", "map", "miou", "psnr", "event_f1")
BEST = Record(
    {"step": COUNT} | dict.fromkeys(RANKING, Nullable(Metric())),
    needed=("step",),
    others=Numbers(),
)
CLASSES = ListOf(Text(), longest=MAX_CLASSES)
# The shape of an example: pictures are as large as image_size allows, series longer.
SHAPE = ListOf(Number(1, 2**24, whole=True), shortest=2, longest=3)
DATA_CHANGES = ListOf(Record({"step": COUNT, "change": Text(), "digest": Text()}))
# The record of the data that a run was trained on, see `data_record`.
DATA = Record(
    {
        "digest": Text(),
        "classes": CLASSES,
        "examples": MapOf(COUNT),
        "digests": MapOf(Text()),
        "changes": DATA_CHANGES,
    },
    needed=("digest", "classes", "examples", "digests"),
)
CONFIG = Record({})  # its settings are checked one by one, see `check_saved_settings`
SUMMARY = Record(
    {
        **dict.fromkeys(("config", "dataset", "baseline", "label", "params_sha256"), Text()),
        "metric": Nullable(Text()),
        "seed": Nullable(Number(whole=True)),
        "fold": Nullable(Number(whole=True)),
        "test": Record({"iou": Nullable(MapOf(Nullable(Metric())))}, others=Numbers()),
        "best": BEST,
        **dict.fromkeys(("steps", "parameters", "macs", "batch_size", "skipped"), Nullable(COUNT)),
        **dict.fromkeys(("compile_seconds", "seconds", "step_seconds"), AMOUNT),
        **dict.fromkeys(("xla_flops_per_step", "examples_per_second"), AMOUNT),
        "classes": Nullable(CLASSES),
        "shape": Nullable(SHAPE),
        "examples": Nullable(MapOf(COUNT)),
        "data": Nullable(Text()),
        "data_changes": Nullable(DATA_CHANGES),
        "devices": Nullable(ListOf(Text())),
        "versions": Nullable(MapOf(Text())),
    }
)
# A line of metrics.jsonl.
FLOAT32 = Nullable(Number(-3.5e38, 3.5e38))
CURVES = (*RANKING, "learning_rate", "temperature")
ROW = Record(
    {"step": COUNT, "split": Text()} | dict.fromkeys(CURVES, FLOAT32),
    needed=("step",),
    others=Numbers(),
)
# Beside the arrays of a checkpoint. Orbax writes NaN and infinity as such.
PROGRESS = Record(
    {
        "seconds": Number(0),
        "best": Nullable(BEST),
        "early_stopping": Nullable(
            Record(
                {
                    **dict.fromkeys(("min_delta", "best_metric"), Metric()),
                    **dict.fromkeys(("patience", "patience_count"), Number(whole=True)),
                    **dict.fromkeys(("should_stop", "has_improved"), Flag()),
                },
                others=None,
            )
        ),
        "config": CONFIG,
        "data": Nullable(Text()),
    }
)
CHECKSUMS = Record(
    {"crc32": MapOf(COUNT), "crc32_of_these": COUNT}, needed=("crc32", "crc32_of_these")
)
# The metadata of a file of weights; each value is a JSON text.
WEIGHTS_METADATA = {"config": CONFIG, "classes": CLASSES, "shape": SHAPE, "versions": Anything()}


def read_summary(workdir: Path, needed: Sequence[str] = ()) -> dict[str, Any] | None:
    """Reads the summary of a finished run; None if the run is not finished.

    Raises:
        UserError: if there is a summary that cannot be read, or lacks one of the fields `needed`.
    """
    form = Record(SUMMARY.fields, needed=tuple(needed))
    try:
        return read_json(workdir / SUMMARY_FILE, form, CONTINUES)
    except FileNotFoundError:
        return None


def read_settings(workdir: Path) -> dict[str, Any] | None:
    """Reads the settings in a run's `config.json`, unchecked but for their form; None if there is no file."""
    try:
        return read_json(workdir / CONFIG_FILE, CONFIG, _advise(workdir))
    except FileNotFoundError:
        return None


def find_settings(workdir: Path) -> tuple[dict[str, Any] | None, Path]:
    """Returns the settings of a run, and the file that they are from; None if there are none.

    Without `config.json` they are those that came with the newest checkpoint.
    """
    saved = read_settings(workdir)
    if saved is None:
        return _find_settings_in_checkpoint(workdir)
    return saved, workdir / CONFIG_FILE


def read_config(workdir: Path) -> tuple[ConfigDict, Path]:
    """Returns the config of a run, and the file that it is from, as `find_settings` does.

    Raises:
        UserError: if there is no such file, or a setting is invalid.
    """
    saved, file = find_settings(workdir)
    if saved is None:
        raise UserError(
            f"{file} cannot be read: it is missing, and no checkpoint has the settings, as those of older "
            "versions do not. Put it back, or start again in another --workdir."
        )
    return restore_config(saved, file), file


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """Reads the numbers beside the arrays of a checkpoint.

    Raises:
        FileNotFoundError: if the file is missing.
        UserError: if it cannot be read.
    """
    return read_json(checkpoint / "progress" / "metadata", PROGRESS)


def list_steps(workdir: Path) -> list[int]:
    """Returns the steps of a run's complete checkpoints, in order."""
    try:
        names = os.listdir(workdir / CHECKPOINTS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{workdir / CHECKPOINTS} cannot be read: {error.strerror}.") from error
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{1,18}", name))


def _find_settings_in_checkpoint(workdir: Path) -> tuple[dict[str, Any] | None, Path]:
    """Returns the settings that came with the newest checkpoint that has any, and their file."""
    for step in reversed(list_steps(workdir)):
        folder = workdir / CHECKPOINTS / str(step)
        try:
            saved = read_progress(folder).get("config")
        except (FileNotFoundError, UserError):
            continue  # a damaged checkpoint is set aside when it is restored
        if saved:
            return saved, folder / "progress" / "metadata"
    return None, workdir / CONFIG_FILE


def _advise(workdir: Path) -> str:
    """Returns what to do about a damaged `config.json`."""
    if _find_settings_in_checkpoint(workdir)[0]:
        return "Delete it, and the settings that came with the checkpoints take its place."
    return "Put the right one back, or start again in another --workdir."
