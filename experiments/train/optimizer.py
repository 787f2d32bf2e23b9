"""Optimization of a run: its phases in steps, the learning rate over them, and the optimizer."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict
from optax.contrib import reduce_on_plateau

from dyn.interop import candidate_kernels
from dyn.schedules import geometric_temperature, linear_temperature

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("plateau", "cosine", "decades", "constant")
TEMPERATURES = {"geometric": geometric_temperature, "linear": linear_temperature}


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """Numbers of steps of a run and of its phases."""

    per_epoch: int
    total: int
    annealing: int  # until the temperature is 1 and the blend 0
    auxiliary_ramp: int  # until the layers' auxiliary losses have their full weight
    head_only: int = 0  # the first ones, in which the head learns alone


def count_steps(config: ConfigDict, num_examples: int) -> StepCounts:
    """Counts the steps of a run on `num_examples` training examples."""
    per_epoch = math.ceil(num_examples / config.batch_size)
    total = per_epoch * config.epochs
    # Configs of layers without a temperature, auxiliary losses or a head lack the section.
    annealing, ramp, head_only = (
        per_epoch * config[section][name] if section in config else 0
        for section, name in (
            ("temperature", "epochs"),
            ("auxiliary", "epochs"),
            ("stages", "head_epochs"),
        )
    )
    return StepCounts(
        per_epoch=per_epoch,
        total=min(total, config.steps) if config.steps else total,
        annealing=annealing,
        auxiliary_ramp=ramp,
        # On top of a random network a head alone would learn nothing useful.
        head_only=head_only if config.init_from else 0,
    )


def make_schedule(config: ConfigDict, steps: StepCounts) -> optax.Schedule:
    """Returns the learning rate of each step, before the plateau's scale.

    'constant' and 'plateau' stay constant; for 'plateau' the loop reduces the rate when the validation loss
    stops falling. 'cosine' falls to a thousandth over the run, 'decades' to a tenth after each third of it.
    All begin with `warmup_epochs` of linear growth from zero. While the head learns alone, the rate is
    constant; the schedule follows, from the rate of `config.stages`.
    """
    rate = config.optimizer.learning_rate
    rate_of_all = find_rate_of_all(config, steps)
    warmup = round(config.optimizer.warmup_epochs * steps.per_epoch)
    if steps.head_only:
        decay = _make_decay_schedule(
            config.optimizer.schedule, rate_of_all, steps.total - steps.head_only
        )
        boundary = max(steps.head_only - warmup, 0)
        after = optax.join_schedules([optax.constant_schedule(rate), decay], [boundary])
    else:
        after = _make_decay_schedule(config.optimizer.schedule, rate, steps.total - warmup)
    if not warmup:
        return after
    # Counted from 1: from 0, the first step would do nothing.
    return optax.join_schedules(
        [lambda step: rate * (step + 1) / (warmup + 1), after], boundaries=[warmup]
    )


def _make_decay_schedule(name: str, rate: float, steps: int) -> optax.Schedule:
    steps = max(steps, 1)
    match name:
        case "cosine":
            return optax.cosine_decay_schedule(rate, steps, alpha=1e-3)
        case "decades":
            ends = {round(steps / 3): 0.1, round(2 * steps / 3): 0.1}
            return optax.piecewise_constant_schedule(rate, ends)
    return optax.constant_schedule(rate)


def find_rate_of_all(config: ConfigDict, steps: StepCounts) -> float:
    """Returns the learning rate of the whole network: that of `config.stages` after a head learnt alone."""
    rate = config.stages.learning_rate if steps.head_only else 0.0
    return rate or config.optimizer.learning_rate


def make_plateau(config: ConfigDict, steps: StepCounts) -> optax.GradientTransformationExtraArgs:
    """Returns the rule that scales the learning rate down when the validation loss stops falling."""
    return reduce_on_plateau(
        factor=config.plateau.factor,
        patience=config.plateau.patience,
        min_scale=min(1.0, config.plateau.min_learning_rate / find_rate_of_all(config, steps)),
    )


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, reset_at: int = 0
) -> optax.GradientTransformation:
    """Returns the optimizer that `config.optimizer` names, with the learning rate of `schedule`.

    Before step `reset_at` it forgets its state; 0 is never.
    """
    if reset_at:
        # The schedule keeps counting.
        rule = make_optimizer(config, lambda step: 1.0)
        return optax.chain(reset_state_at(rule, reset_at), optax.scale_by_schedule(schedule))
    decay = config.optimizer.weight_decay
    b1, b2 = config.optimizer.betas
    match config.optimizer.name:
        case "adam" if decay == 0:
            optimizer = optax.adam(schedule, b1, b2)
        case "adam" | "adamw":
            optimizer = optax.adamw(schedule, b1, b2, weight_decay=decay, mask=_is_matrix)
        case _:  # sgd: `validate` refuses other names
            optimizer = optax.chain(
                optax.add_decayed_weights(decay, mask=_is_matrix),
                optax.sgd(schedule, momentum=0.9, nesterov=True),
            )
    if config.optimizer.clip:
        optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip), optimizer)
    if config.task == "acgan" and config.gan.discriminator_rate != 1:
        slower = optax.scale(config.gan.discriminator_rate)
        optimizer = optax.chain(optimizer, optax.masked(slower, _is_discriminator))
    # Configs of layers without attention lack the setting.
    if (factor := config.optimizer.get("attention_rate", 1.0)) != 1:
        optimizer = optax.chain(optimizer, optax.masked(optax.scale(factor), _is_attention))
    if config.adapt_gates:
        return optax.chain(optimizer, optax.masked(optax.set_to_zero(), _is_not_attention))
    if config.start.freeze:
        return optax.chain(optimizer, optax.masked(optax.set_to_zero(), candidate_kernels))
    return optimizer


class ResettingState(NamedTuple):
    """The number of updates so far, and the state of the optimizer that is reset.

    Checkpoints know both fields by these names.
    """

    count: jax.Array
    gathered: Any


def reset_state_at(rule: optax.GradientTransformation, step: int) -> optax.GradientTransformation:
    """Wraps an optimizer so that it forgets its state, such as Adam's moments, before update `step`."""

    def init(params: Any) -> ResettingState:
        return ResettingState(jnp.zeros((), jnp.int32), rule.init(params))

    def update(
        gradients: Any, state: ResettingState, params: Any = None
    ) -> tuple[Any, ResettingState]:
        resets = state.count == step
        inner = jax.tree.map(
            lambda new, old: jnp.where(resets, new, old), rule.init(params), state.gathered
        )
        updates, inner = rule.update(gradients, inner, params)
        return updates, ResettingState(state.count + 1, inner)

    return optax.GradientTransformation(init, update)


def map_below_head(function: Callable[[jax.Array], Any], params: Any) -> Any:
    """Applies a function to all parameters but those of the head.

    Beside a `backbone` everything is the head; in a network without one it is the layer `head`.
    """
    has_backbone = "backbone" in params

    def apply(path: tuple[str, ...], leaf: jax.Array) -> Any:
        in_head = path[0] != "backbone" if has_backbone else path[0] == "head"
        return leaf if in_head else function(leaf)

    return traverse_util.path_aware_map(apply, params)


def _is_matrix(params: Any) -> Any:
    """Marks kernels, which alone are decayed; biases, those of candidates too, and norms' scales are not."""
    return traverse_util.path_aware_map(
        lambda path, leaf: leaf.ndim > 1 and path[-1] not in ("bias", "scale"), params
    )


def _is_discriminator(params: Any) -> Any:
    """Marks the parameters of a GAN's discriminator."""
    return traverse_util.path_aware_map(lambda path, _: path[0] == "discriminator", params)


def _is_attention(params: Any) -> Any:
    """Marks the parameters that decide what a dynamic convolution does; `CondConv` calls it routing."""
    return traverse_util.path_aware_map(
        lambda path, _: "attention" in path or "routing" in path, params
    )


def _is_not_attention(params: Any) -> Any:
    """Marks the parameters that decide no attention: with gates, all but the gates' own."""
    return jax.tree.map(lambda marked: not marked, _is_attention(params))
