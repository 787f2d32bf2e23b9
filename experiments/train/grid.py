"""One run of many: its config, its workdir, and an attempt to train it."""

import dataclasses
import traceback
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

import experiments.configs
from experiments.configs.shared.overrides import override
from experiments.core.config_file import list_configs, load_config_file
from experiments.core.errors import UserError, suggest_nearest
from experiments.train.loop import train
from experiments.train.program import Programs


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a study that is to be trained."""

    config: ConfigDict
    workdir: Path


def attempt_run(run: PlannedRun, programs: Programs) -> bool:
    """Trains a run, and returns whether it succeeded; an error is written into its workdir.

    Args:
        run: the run to train, or to continue.
        programs: compiled programs, which are reused and added to.
    """
    note, trace = run.workdir / "error.txt", run.workdir / "traceback.txt"
    for file in (note, trace):
        file.unlink(missing_ok=True)
    try:
        train(run.config, run.workdir, programs)
    except UserError as error:
        sentence = str(error)
    except Exception as error:  # of any kind: the other runs go on
        sentence = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        run.workdir.mkdir(parents=True, exist_ok=True)
        trace.write_text(traceback.format_exc())
    else:
        return True
    run.workdir.mkdir(parents=True, exist_ok=True)
    note.write_text(sentence + "\n")
    print(f"failed: {sentence}", flush=True)
    return False


def load_config(
    name: str,
    dataset: str,
    source: str = "",
    overrides: Mapping[str, object] | None = None,
    flag: str = "--override",
) -> ConfigDict:
    """Returns the config of a file of `experiments.configs` for a data set, with some settings changed.

    Args:
        name: of the file, without .py. After a colon may follow other words of the config's argument, as in
            `base:recipe=strong`.
        dataset: the data set, as in a config's argument.
        source: where the data is; '' to find it.
        overrides: values by dotted path.
        flag: what the user wrote before an override, for errors.

    Raises:
        UserError: if the config or a setting does not exist.
    """
    folder = Path(experiments.configs.__file__).parent
    name, _, words = name.partition(":")
    if name not in list_configs(folder):
        hint = suggest_nearest(name, list_configs(folder))
        raise UserError(f"--configs: there is no config {name}{hint}")
    argument = f"{dataset},{words}" if words else dataset
    config = load_config_file(f"{folder / name}.py:{argument}")
    if source:
        override(config, "data.source", source, "--source")
    for path, value in (overrides or {}).items():
        override(config, path, value, flag)
    return config
