"""One run of many: its config, its workdir, and an attempt to train it."""

import contextlib
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
from experiments.runs.folder import InUseError
from experiments.runs.schema import read_summary
from experiments.train.loop import train
from experiments.train.program import Programs

ERROR_FILE = "error.txt"


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a study that is to be trained, and the folder of the run whose network it starts from."""

    config: ConfigDict
    workdir: Path
    accept_new_data: bool = False
    start: Path | None = None


def attempt_run(run: PlannedRun, programs: Programs, brief: bool = False) -> bool:
    """Trains a run, and returns whether it succeeded; an error is written into its workdir.

    Compiled `programs` are reused, and new ones added. A `brief` run prints no table at its start.

    Raises:
        InUseError: if another process trains the run; nothing is written into its folder then.
    """
    note, trace = run.workdir / ERROR_FILE, run.workdir / "traceback.txt"
    for file in (note, trace):
        with contextlib.suppress(OSError):  # `train` says what is wrong with the folder
            file.unlink()
    texts = {}
    try:
        if run.start:
            _check_start(run.start)
        accepted = run.accept_new_data
        train(run.config, run.workdir, programs, brief=brief, accept_new_data=accepted)
    except InUseError:
        raise
    except UserError as error:
        sentence = str(error)
    except Exception as error:  # of any kind: the other runs go on
        sentence = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        texts[trace] = traceback.format_exc()
    else:
        return True
    print_line(f"failed: {sentence}")
    texts[note] = f"{escape_control(sentence)}\n"
    with contextlib.suppress(OSError):  # a full disk may be the reason itself
        for file, text in texts.items():
            write_text(file, text)
    return False


def read_reason(workdir: Path) -> str:
    """Returns why a run failed; its folder may not have had room for that."""
    try:
        return (workdir / ERROR_FILE).read_text()
    except OSError:
        return "it is printed above."


def _check_start(start: Path) -> None:
    """Raises a UserError if the run that another one starts from has failed, or is not finished."""
    has_failed = (start / ERROR_FILE).exists()
    if has_failed or read_summary(start) is None:
        state = "has failed" if has_failed else "is not finished"
        raise UserError(
            f"Its start, {start.parent.name}/{start.name}, {state}; the same command tries both again."
        )


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
