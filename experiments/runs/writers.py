"""Writers that draw a run's curves elsewhere: TensorBoard, and Weights & Biases."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.core.errors import UserError
from experiments.core.files import read_small_file


class TensorBoardWriter:
    """Writes event files into `workdir/tensorboard`."""

    def __init__(self, workdir: Path, start_step: int):
        """Opens a new event file; points after `start_step`, from before an interruption, are hidden."""
        from tensorboardX import SummaryWriter  # takes a second to import, and few runs want it

        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WandbWriter:
    """Writes to a run of Weights & Biases, to the same one again for the same workdir."""

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        """Starts or resumes the run."""
        try:
            import wandb  # pyrefly: ignore
        except ImportError as error:
            raise UserError(
                f"--config.wandb={project} needs a library that is not installed: pip install wandb."
            ) from error
        id_file = workdir / "wandb" / "run_id"
        id_file.parent.mkdir(parents=True, exist_ok=True)
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8))
        written = read_small_file(id_file).decode(errors="replace").strip()
        run = {"name": workdir.name, "id": written, "resume": "allow"}
        self._run = wandb.init(project=project, dir=str(workdir), config=dict(config), **run)
        # wandb's own step count may not go back, and the step of a run that continues does.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        """Ends the run of Weights & Biases."""
        self._run.finish()


Writer = TensorBoardWriter | WandbWriter


def open_writers(config: ConfigDict, workdir: Path, start_step: int) -> list[Writer]:
    """Opens the writers that a config asks for: `tensorboard` is true, or `wandb` names a project.

    Raises:
        UserError: if a writer's library is not installed.
    """
    writers: list[Writer] = []
    if config.tensorboard:
        writers.append(TensorBoardWriter(workdir, start_step))
    if config.wandb:
        writers.append(WandbWriter(workdir, config.wandb, config.to_dict()))
    return writers
