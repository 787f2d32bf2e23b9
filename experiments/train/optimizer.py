"""How a run is optimised: its lengths in steps, the learning rate over them, the optimiser."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
        head: in which the head alone learns.
    """

    epoch: int
    total: int
    annealing: int
    ramp: int
    head: int = 0


def make_lengths(config: ConfigDict, examples: int) -> Lengths:
    """The lengths of a run on so many training examples."""
    epoch = math.ceil(examples / config.batch_size)
    total = epoch * config.epochs
    return Lengths(
        epoch=epoch,
        total=min(total, config.steps) if config.steps else total,
        annealing=epoch * config.temperature.epochs,
        ramp=epoch * config.auxiliary.epochs,
        # Over a network of random numbers there is nothing for a head to learn alone.
        head=epoch * config.stages.head_epochs if config.init_from else 0,
    )


def make_schedule(config: ConfigDict, lengths: Lengths) -> optax.Schedule:
    """The learning rate that `config.optimizer` asks for, before the plateau's scale.

    'constant' stays. 'plateau' does too: the loop cuts it when the validation loss stays. 'cosine'
    falls to a thousandth over the run, 'decades' to a tenth after each third of it. All begin with
    `warmup_epochs` of linear growth from zero. Where the head learns alone first, its rate is constant,
    and all that begins then, at the rate of `config.stages`.
    """
    rate = config.optimizer.learning_rate
    warmup = round(config.optimizer.warmup_epochs * lengths.epoch)
    if lengths.head:
        then = _falling(config, config.stages.learning_rate or rate, lengths.total - lengths.head)
        boundary = max(lengths.head - warmup, 0)
        after = optax.join_schedules([optax.constant_schedule(rate), then], [boundary])
    else:
        after = _falling(config, rate, lengths.total - warmup)
    if not warmup:
        return after
    # Counted from one, or the first step would do nothing.
    return optax.join_schedules(
        [lambda step: rate * (step + 1) / (warmup + 1), after], boundaries=[warmup]
    )


def _falling(config: ConfigDict, rate: float, steps: int) -> optax.Schedule:
    steps = max(steps, 1)
    match config.optimizer.schedule:
        case "cosine":
            return optax.cosine_decay_schedule(rate, steps, alpha=1e-3)
        case "decades":
            ends = {round(steps / 3): 0.1, round(2 * steps / 3): 0.1}
            return optax.piecewise_constant_schedule(rate, ends)
    return optax.constant_schedule(rate)


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, restart_at: int = 0
) -> optax.GradientTransformation:
    """The optimiser that `config.optimizer` names, at the rate of `schedule`.

    Args:
        config: the experiment.
        schedule: learning rate of each step.
        restart_at: the step at which it forgets what it has gathered; 0 for none.
    """
    if restart_at:
        # The schedule goes on counting.
        rule = make_optimizer(config, lambda step: 1.0)
        return optax.chain(restarting(rule, restart_at), optax.scale_by_schedule(schedule))
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


class Restarting(NamedTuple):
    """How often an optimiser was asked, and what it has gathered."""

    count: jax.Array
    gathered: Any


def restarting(rule: optax.GradientTransformation, at: int) -> optax.GradientTransformation:
    """An optimiser that forgets what it has gathered, such as Adam's moments, before its update `at`."""

    def init(params: Any) -> Restarting:
        return Restarting(jnp.zeros((), jnp.int32), rule.init(params))

    def update(gradients: Any, state: Restarting, params: Any = None) -> tuple[Any, Restarting]:
        begins = state.count == at
        gathered = jax.tree.map(
            lambda new, old: jnp.where(begins, new, old), rule.init(params), state.gathered
        )
        updates, gathered = rule.update(gradients, gathered, params)
        return updates, Restarting(state.count + 1, gathered)

    return optax.GradientTransformation(init, update)


def of_head(function: Callable[[jax.Array], Any], params: Any) -> Any:
    """A tree in which what is not the head's is what `function` makes of it.

    Over a `backbone` all else is the head; in a network of one piece it is what is called `head`.
    """
    whole = "backbone" not in params

    def choose(path: tuple[str, ...], leaf: jax.Array) -> Any:
        learns = path[0] == "head" if whole else path[0] != "backbone"
        return leaf if learns else function(leaf)

    return traverse_util.path_aware_map(choose, params)


def _not_attention(params: Any) -> Any:
    """All that decides no attention: with gates, what is not the gates' own."""
    return traverse_util.path_aware_map(lambda path, _: "attention" not in path, params)


def _discriminator(params: Any) -> Any:
    return traverse_util.path_aware_map(lambda path, _: path[0] == "discriminator", params)


def _matrices(params: Any) -> Any:
    """Weight decay is for kernels; biases and the norms' scales are left alone."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
