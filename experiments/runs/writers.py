"""Where curves go besides `metrics.jsonl`: TensorBoard, and Weights & Biases."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from experiments.core.errors import UserError


class Board(Protocol):
    """Something that draws curves."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a point to each curve."""

    def close(self) -> None:
        """Hands over what has not been written yet."""


def open_boards(config: ConfigDict, workdir: Path, start_step: int) -> list[Board]:
    """The boards that a config asks for: `tensorboard` is true, or `wandb` names a project.

    Raises:
        UserError: if the library of one is not installed.
    """
    boards: list[Board] = []
    if config.tensorboard:
        boards.append(tensorboard(workdir, start_step))
    if config.wandb:
        boards.append(weights_and_biases(config, workdir))
    return boards


def tensorboard(workdir: Path, start_step: int) -> Board:
    """Event files in `workdir/tensorboard`; points past the step that a run continues from are hidden."""
    from tensorboardX import SummaryWriter  # costs a second; few runs want it

    return _TensorBoard(SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1))


def weights_and_biases(config: ConfigDict, workdir: Path) -> Board:
    """A run of the project `config.wandb`; the same one again for the same workdir.

    Raises:
        UserError: if wandb is not installed.
    """
    try:
        import wandb  # pyrefly: ignore
    except ImportError as error:
        raise UserError(
            f"--config.wandb={config.wandb} needs a library that is not installed: pip install wandb."
        ) from error
    folder = workdir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "run_id"
    if not known.exists():
        known.write_text(secrets.token_hex(8))
    run = wandb.init(
        project=config.wandb,
        name=workdir.name,
        id=known.read_text(),
        resume="allow",
        dir=str(workdir),
        config=config.to_dict(),
    )
    # Its own count of steps may not go back, and that of a run that continues does.
    run.define_metric("*", step_metric="step")
    return _WeightsAndBiases(run)


class _TensorBoard:
    def __init__(self, writer: Any):
        self._writer = writer

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        self._run.finish()
