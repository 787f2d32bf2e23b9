"""Whether a config can be run, said before anything is loaded, written or compiled."""

import math
from collections.abc import Iterable

import jax
from ml_collections import ConfigDict

from experiments.errors import UserError, nearest
from experiments.program import ANNEALING
from experiments.recipe import OPTIMIZERS, SCHEDULES
from experiments.tasks import TASKS

DTYPES = ("float32", "bfloat16", "float16")

# The least value of each number.
AT_LEAST = {
    "seed": 0,
    "data.limit": 0,
    "data.max_skipped": 0,
    "data.fold": -1,
    "data.folds": 2,
    "start.noise": 0,
    "image_size": 0,
    "model.width": 1,
    "model.representation": 1,
    "optimizer.weight_decay": 0,
    "optimizer.warmup_epochs": 0,
    "optimizer.clip": 0,
    "loss_scale.start": 1,
    "loss_scale.grow_every": 0,
    "mixing.label_smoothing": 0,
    "mixing.mixup": 0,
    "mixing.cutmix": 0,
    "average": 0,
    "plateau.patience": 0,
    "plateau.min_learning_rate": 0,
    "early_stopping.patience": 0,
    "temperature.epochs": 0,
    "auxiliary.weight": 0,
    "auxiliary.epochs": 0,
    "data.validation": 0,
    "data.test": 0,
    "model.dropout": 0,
    "batch_size": 1,
    "accumulate": 1,
    "epochs": 1,
    "steps": 0,
    "log_every": 1,
    "checkpoint_every": 1,
    "input.threads": 0,
    "input.workers": 0,
}
ABOVE_ZERO = ("optimizer.learning_rate", "plateau.factor", "temperature.start")
BELOW_ONE = (
    "plateau.factor",
    "data.validation",
    "data.test",
    "model.dropout",
    "mixing.label_smoothing",
    "average",
)


def validate(config: ConfigDict) -> None:
    """Returns if every setting has a value that makes sense.

    Raises:
        UserError: names the first setting that does not, and what it could be.
    """
    for path, least in AT_LEAST.items():
        value = _get(config, path)
        if value is not None and not least <= value < math.inf:
            raise UserError(f"--config.{path}={value}: choose {least} or more.")
    for path in ABOVE_ZERO:
        value = _get(config, path)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--config.{path}={value}: choose more than 0.")
    for path in BELOW_ONE:
        value = _get(config, path)
        if value is not None and not value < 1:
            raise UserError(f"--config.{path}={value}: choose less than 1.")
    _one_of(config, "task", TASKS)
    _one_of(config, "dtype", DTYPES)
    _one_of(config, "optimizer.name", OPTIMIZERS)
    _one_of(config, "optimizer.schedule", SCHEDULES)
    _one_of(config, "temperature.schedule", ANNEALING)
    if config.adapt_gates and (config.conv.name != "gated" or not config.init_from):
        raise UserError(
            "--config.adapt_gates fine-tunes the gates of a trained network: choose a config with gates "
            "(experiments/configs/hard.py) and give its run as --config.init_from=RUN."
        )
    if config.start.config and not config.init_from:
        raise UserError(
            f"{config.name} starts from a trained {config.start.config}: give that run as "
            f"--config.init_from=RUN, or --config.start.config= to start from scratch. "
            "experiments.study trains the one and then the other."
        )
    if config.start.freeze and not config.init_from:
        raise UserError(
            "--config.start.freeze=True freezes kernels that another run has trained: give it as "
            "--config.init_from=RUN."
        )
    task = TASKS[config.task]
    _one_of(config, "augment", task.AUGMENTATIONS)
    task.make_model(config, num_classes=2, spatial_axes=2)
    devices, microbatches = jax.device_count(), config.accumulate
    if config.batch_size % (devices * microbatches):
        cut = f" in {microbatches} microbatches (--config.accumulate)" if microbatches > 1 else ""
        raise UserError(
            f"--config.batch_size={config.batch_size} does not divide among {devices} devices{cut}; "
            f"choose a multiple of {devices * microbatches}."
        )


def _one_of(config: ConfigDict, path: str, known: Iterable[str]) -> None:
    value = _get(config, path)
    if value not in known:
        raise UserError(f"--config.{path}={value}: {nearest(str(value), known).lstrip('; ')}")


def _get(config: ConfigDict, path: str) -> object:
    """The value at a dotted path, None where a config has no such setting."""
    value = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, ConfigDict) else None
    return value
