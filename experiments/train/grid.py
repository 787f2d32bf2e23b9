"""A run that is one of many: its config, where it lives, and an attempt at it."""

import dataclasses
import importlib
import traceback
from pathlib import Path

from ml_collections import ConfigDict

import experiments.configs
from experiments.configs.overrides import override
from experiments.core.errors import UserError, suggest_nearest
from experiments.train.loop import train
from experiments.train.program import Program


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of a study."""

    config: ConfigDict
    workdir: Path


def attempt(run: Planned, programs: dict[str, Program]) -> bool:
    """Trains; what goes wrong is written into the run's folder. Returns whether it went well."""
    note, trace = run.workdir / "error.txt", run.workdir / "traceback.txt"
    for file in (note, trace):
        file.unlink(missing_ok=True)
    try:
        train(run.config, run.workdir, programs)
    except UserError as error:
        sentence = str(error)
    except Exception as error:  # whatever it is, the other runs are worth having
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
    name: str, dataset: str, source: str = "", overrides: dict[str, object] | None = None
) -> ConfigDict:
    """The config of a file of `experiments.configs` on a data set, with some fields changed.

    Behind the file's name may be what else its argument says, as in `birdsong_classifier:conv=dcd`.

    Raises:
        UserError: for a config or a field that does not exist.
    """
    folder = Path(experiments.configs.__file__).parent
    known = sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "common"))
    name, _, words = name.partition(":")
    if name not in known:
        raise UserError(f"--configs: there is no config {name}{suggest_nearest(name, known)}")
    argument = f"{dataset},{words}" if words else dataset
    config = importlib.import_module(f"experiments.configs.{name}").get_config(argument)
    config.data.source = source
    for path, value in (overrides or {}).items():
        override(config, path, value)
    return config
