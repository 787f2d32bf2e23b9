"""One run of many: its config, its workdir, and an attempt to train it."""

import dataclasses
import traceback
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

import experiments.configs
from experiments.configs.shared.overrides import override
from experiments.core.config_file import list_configs, load_config_file
from experiments.core.console import print_line
from experiments.core.errors import UserError, suggest_nearest
from experiments.core.escaping import escape_control
from experiments.core.files import write_text
from experiments.train.loop import train
from experiments.train.program import Programs


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a study that is to be trained."""

    config: ConfigDict
    workdir: Path
    accept_new_data: bool = False


def attempt_run(run: PlannedRun, programs: Programs, brief: bool = False) -> bool:
    """Trains a run, and returns whether it succeeded; an error is written into its workdir.

    Compiled `programs` are reused, and new ones added. A `brief` run prints no table at its start.
    """
    note, trace = run.workdir / "error.txt", run.workdir / "traceback.txt"
    for file in (note, trace):
        file.unlink(missing_ok=True)
    try:
        accepted = run.accept_new_data
        train(run.config, run.workdir, programs, brief=brief, accept_new_data=accepted)
    except UserError as error:
        sentence = str(error)
    except Exception as error:  # of any kind: the other runs go on
        sentence = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        run.workdir.mkdir(parents=True, exist_ok=True)
        write_text(trace, traceback.format_exc())
    else:
        return True
    run.workdir.mkdir(parents=True, exist_ok=True)
    write_text(note, f"{escape_control(sentence)}\n")
    print_line(f"failed: {sentence}")
    return False


def load_config(
    name: str,
    dataset: str,
    overrides: Mapping[str, object] | None = None,
    flag: str = "--override",
) -> ConfigDict:
    """Returns the config of a file of `experiments.configs` for a data set, with some settings changed.

    The file's `name` has no .py; other words of the config's argument may follow it, as in
    `base:recipe=strong`. Errors about `overrides`, which are values by dotted path, begin with `flag`.
    """
    folder = Path(experiments.configs.__file__).parent
    name, _, words = name.partition(":")
    if name not in list_configs(folder):
        hint = suggest_nearest(name, list_configs(folder))
        raise UserError(f"--configs: there is no config {name}{hint}")
    argument = f"{dataset},{words}" if words else dataset
    config = load_config_file(f"{folder / name}.py:{argument}")
    for path, value in (overrides or {}).items():
        override(config, path, value, flag)
    return config
