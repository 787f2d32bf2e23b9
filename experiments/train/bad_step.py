"""A step whose numbers are not finite: which examples did it, and what is kept to look at it."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.core.errors import UserError
from experiments.core.hosts import max_over_hosts
from experiments.data import Example, pipeline
from experiments.data.dataset import Source
from experiments.runs.checkpoints import Checkpoints
from experiments.train.program import Program, TrainState

FOLDER = "bad_step"
ADVICE = (
    "Try a lower --config.optimizer.learning_rate, --config.optimizer.clip=1.0 or "
    "--config.dtype=float32, in another --workdir."
)


def explain(
    config: ConfigDict,
    workdir: Path,
    state: TrainState,
    program: Program,
    source: Source,
    transform: Callable[..., Example],
) -> UserError:
    """The error that says which step failed, with its batch and the state before it in `bad_step`.

    A batch is a function of the seed and the step, and a state that has failed is the one before: both are
    made again here, so that ordinary steps need not keep anything.

    Args:
        config: the experiment.
        workdir: the run's; `bad_step/batch.npz` holds the batch as the network saw it, with `records`, the
            examples' places in the training split, and `bad_step/checkpoints` the state.
        state: the state that has failed; its memory is given away.
        program: what made it.
        source: the training split.
        transform: what is done to an example.
    """
    begun = int(state.step)
    state = state.replace(failed=jax.device_put(np.False_, state.failed.sharding))

    def batch(index: int, count: int) -> dict[str, np.ndarray]:
        batches = pipeline.train_batches(
            source,
            transform,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=begun,
            num_threads=0,
            process_index=index,
            process_count=count,
        )
        return next(batches)

    records = pipeline.train_records(len(source), config.batch_size, config.seed, begun)
    whole = batch(0, 1)
    broken = [
        int(record)
        for record, values in zip(records, whole["inputs"], strict=True)
        if not np.isfinite(values).all()
    ]
    place = keep(workdir, state, {**whole, "records": records})
    local = batch(jax.process_index(), jax.process_count())
    loss = float(program.train_step(state, program.put(local))[1]["loss"])
    words = (
        f"The gradients are not finite (the loss is {loss:.4g})"
        if math.isfinite(loss)
        else f"The loss is {loss}"
    )
    examples = f"examples {', '.join(map(str, records[:8]))}{', ...' if len(records) > 8 else ''}"
    inputs = f"; the inputs of {', '.join(map(str, broken[:8]))} are not finite" if broken else ""
    return UserError(
        f"{words} at step {begun + 1}, whose batch is the {examples} of the training split{inputs}. {place} "
        f"The checkpoints are intact. {ADVICE}"
    )


def explain_evaluation(loss: float, step: int, workdir: Path, state: TrainState) -> UserError:
    """The error for an evaluation whose loss is not finite though those of the steps were."""
    return UserError(
        f"The validation loss is {loss} at step {step}. {keep(workdir, state)} The checkpoints are intact. "
        f"{ADVICE}"
    )


def keep(workdir: Path, state: TrainState, batch: dict[str, np.ndarray] | None = None) -> str:
    """Writes a state, and perhaps a batch, to `bad_step`; says in a sentence where they are."""
    folder = workdir / FOLDER
    try:
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if batch is not None:
                np.savez(folder / "batch.npz", **batch)
        max_over_hosts(0)  # or the folder would go while another host writes to it
        checkpoints = Checkpoints(folder / "checkpoints")
        checkpoints.save(int(state.step), state, {})
        checkpoints.close()
    except (OSError, UserError) as error:
        return f"It could not be kept: {error}."
    what = "The state" if batch is None else "The batch and the state before it"
    return f"{what} {'is' if batch is None else 'are'} in {folder}."
