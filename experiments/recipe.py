"""How a run is optimised: its lengths in steps, the learning rate over them, the optimiser."""

import dataclasses
import math
from typing import Any

import jax
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from dyn.interop import candidate_kernels

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("plateau", "cosine", "decades", "constant")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long a run and its parts are, in steps.

    Attributes:
        epoch: the steps of an epoch.
        total: of the run.
        annealing: until the temperature is 1 and the blend 0.
        ramp: until the layers' own losses have their full weight.
    """

    epoch: int
    total: int
    annealing: int
    ramp: int


def make_lengths(config: ConfigDict, examples: int) -> Lengths:
    """The lengths of a run on so many training examples."""
    epoch = math.ceil(examples / config.batch_size)
    total = epoch * config.epochs
    return Lengths(
        epoch=epoch,
        total=min(total, config.steps) if config.steps else total,
        annealing=epoch * config.temperature.epochs,
        ramp=epoch * config.auxiliary.epochs,
    )


def make_schedule(config: ConfigDict, lengths: Lengths) -> optax.Schedule:
    """The learning rate that `config.optimizer` asks for, before the plateau's scale.

    'constant' stays. 'plateau' does too: the loop cuts it when the validation loss stays. 'cosine'
    falls to a thousandth over the run, 'decades' to a tenth after each third of it. All begin with
    `warmup_epochs` of linear growth from zero.
    """
    rate = config.optimizer.learning_rate
    warmup = round(config.optimizer.warmup_epochs * lengths.epoch)
    if config.optimizer.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, max(lengths.total - warmup, 1), alpha=1e-3)
    elif config.optimizer.schedule == "decades":
        third = max(lengths.total - warmup, 1) / 3
        after = optax.piecewise_constant_schedule(rate, {round(third): 0.1, round(2 * third): 0.1})
    else:
        after = optax.constant_schedule(rate)
    if not warmup:
        return after
    # Counted from one, or the first step would do nothing.
    return optax.join_schedules(
        [lambda step: rate * (step + 1) / (warmup + 1), after], boundaries=[warmup]
    )


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser that `config.optimizer` names, at the rate of `schedule`."""
    decay = config.optimizer.weight_decay
    b1, b2 = config.optimizer.betas
    match config.optimizer.name:
        case "adam" if decay == 0:
            optimizer = optax.adam(schedule, b1, b2)
        case "adam" | "adamw":
            optimizer = optax.adamw(schedule, b1, b2, weight_decay=decay, mask=_matrices)
        case _:  # sgd; `validate` knows the names
            optimizer = optax.chain(
                optax.add_decayed_weights(decay, mask=_matrices),
                optax.sgd(schedule, momentum=0.9, nesterov=True),
            )
    if config.optimizer.clip:
        optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip), optimizer)
    if config.task == "acgan" and config.gan.discriminator_rate != 1:
        slower = optax.scale(config.gan.discriminator_rate)
        optimizer = optax.chain(optimizer, optax.masked(slower, _discriminator))
    if config.adapt_gates:
        return optax.chain(optimizer, optax.masked(optax.set_to_zero(), _not_attention))
    if config.start.freeze:
        return optax.chain(optimizer, optax.masked(optax.set_to_zero(), candidate_kernels))
    return optimizer


def _not_attention(params: Any) -> Any:
    """All that decides no attention: with gates, what is not the gates' own."""
    return traverse_util.path_aware_map(lambda path, _: "attention" not in path, params)


def _discriminator(params: Any) -> Any:
    return traverse_util.path_aware_map(lambda path, _: path[0] == "discriminator", params)


def _matrices(params: Any) -> Any:
    """Weight decay is for kernels; biases and the norms' scales are left alone."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
