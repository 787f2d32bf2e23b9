"""Explains a step whose numbers are not finite, and keeps what is needed to look at it."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.core.errors import UserError
from experiments.core.hosts import max_over_hosts
from experiments.data import Example, pipeline
from experiments.data.dataset import Source
from experiments.runs.checkpoints import Checkpoints
from experiments.train.program import Program
from experiments.train.step import TrainState

FOLDER = "bad_step"
SHOWN_RECORDS = 8
ADVICE = (
    "The checkpoints are intact. Try a lower --config.optimizer.learning_rate, "
    "--config.optimizer.clip=1.0 or --config.dtype=float32, in another --workdir."
)


def explain_bad_step(
    workdir: Path,
    state: TrainState,
    program: Program,
    source: Source,
    transform: Callable[..., Example],
    *,
    batch_size: int,
    seed: int,
) -> UserError:
    """Returns the error that names the step that failed, and keeps its batch and the state before it.

    A batch is a function of the seed and the step, and a failed state is the one before the step. So both
    can be made again here, and ordinary steps keep nothing. The buffers of `state` are donated.

    In `workdir`, `bad_step/batch.npz` gets the batch as the network saw it, with `records`, the examples'
    positions in the training split `source`, and `bad_step/checkpoints` gets the state.
    """
    step = int(state.step)
    state = state.replace(failed=jax.device_put(np.False_, state.failed.sharding))

    def make_batch(**processes: int) -> dict[str, np.ndarray]:
        settings = {"batch_size": batch_size, "seed": seed, "start_step": step, "num_threads": 0}
        return next(pipeline.train_batches(source, transform, **settings, **processes))

    batch = make_batch()
    records = pipeline.train_records(len(source), batch_size, seed, step)
    place = _save_bad_step(workdir / FOLDER, state, {**batch, "records": records})
    local = make_batch(process_index=jax.process_index(), process_count=jax.process_count())
    loss = float(program.train_step(state, program.shard_batch(local))[1]["loss"])
    symptom = (
        f"The gradients are not finite (the loss is {loss:.4g})"
        if math.isfinite(loss)
        else f"The loss is {loss}"
    )
    more = ", ..." if len(records) > SHOWN_RECORDS else ""
    bad = records[[not np.isfinite(values).all() for values in batch["inputs"]]]
    inputs = f"; the inputs of {_join_positions(bad)} are not finite" if len(bad) else ""
    return UserError(
        f"{symptom} at step {step + 1}, whose batch is the examples {_join_positions(records)}{more} of the "
        f"training split{inputs}. {place} {ADVICE}"
    )


def explain_bad_evaluation(workdir: Path, state: TrainState, loss: float) -> UserError:
    """Returns the error for a validation loss that is not finite although those of the steps were."""
    place = _save_bad_step(workdir / FOLDER, state)
    return UserError(f"The validation loss is {loss} at step {int(state.step)}. {place} {ADVICE}")


def _join_positions(records: np.ndarray) -> str:
    return ", ".join(map(str, records[:SHOWN_RECORDS]))


def _save_bad_step(
    folder: Path, state: TrainState, batch: dict[str, np.ndarray] | None = None
) -> str:
    """Writes a state, and a batch if there is one; returns the sentence that says where they are."""
    try:
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if batch is not None:
                np.savez(folder / "batch.npz", **batch)
        # A barrier: otherwise another host may write into the folder before it is emptied.
        max_over_hosts(0)
        with Checkpoints(folder / "checkpoints") as checkpoints:
            checkpoints.save(int(state.step), state, {})
    except (OSError, UserError) as error:
        return f"It could not be kept: {error}."
    if batch is None:
        return f"The state is in {folder}."
    return f"The batch and the state before it are in {folder}."
