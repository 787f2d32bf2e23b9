"""One training step and one evaluation step: pure functions of a state and a batch.

`program.py` compiles them for the devices at hand. Three steps in a notebook:

    import numpy as np
    from experiments import data
    from experiments.configs import base
    from experiments.data import pipeline
    from experiments.tasks import make_task
    from experiments.train.optimizer import count_steps
    from experiments.train.program import compile_program
    from experiments.train.validate import resolve_config

    config = resolve_config(base.get_config("digits,smoke"))
    task = make_task(config)
    dataset = data.load_for_training(config.data, config.seed, image_size=config.image_size)
    train, num_classes = dataset.splits["train"], len(dataset.classes)
    augment, transform = task.make_transform(train=True), task.make_transform(train=False)
    steps = count_steps(config, len(train))
    train_example, eval_example = augment(train[0], np.random.default_rng(0)), transform(train[0])
    program = compile_program(config, task, num_classes, steps, train_example, eval_example)

    state = program.create_state(config.seed)
    batches = pipeline.train_batches(train, augment, batch_size=config.batch_size, seed=config.seed)
    for _ in range(3):
        state, metrics = program.train_step(state, program.shard_batch(next(batches)))
        print(metrics["loss"])
    batches.close()

In all functions `batch` holds arrays `[B, ...]`, `task` is the loss and the metrics of `model`, `sharding` is
that of parameters which are split over the devices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from ml_collections import ConfigDict
from optax.contrib import ReduceLROnPlateauState

from dyn.schedules import linear_blend, set_blend, set_temperature
from experiments.tasks import Task
from experiments.train.loss_scale import (
    LossScale,
    check_finite,
    keep_old_where,
    make_loss_scale,
    unscale_gradients,
    update_loss_scale,
)
from experiments.train.optimizer import TEMPERATURES, StepCounts, make_schedule, map_below_head
from experiments.train.sharding import ParameterSharding

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Checkpoints store fields by name: renaming one breaks old runs.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    attention: Any  # temperatures and blends
    average: Any  # moving average of `params`, and its own `batch_stats`; empty if none is kept
    opt_state: optax.OptState
    plateau: ReduceLROnPlateauState  # the scale of the learning rate
    loss_scale: LossScale
    failed: jax.Array  # once it is true, nothing changes any more
    rng: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """Variables that the model is trained with."""
        names = ("params", "batch_stats", "attention")
        return {name: getattr(self, name) for name in names}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """Variables that the model is evaluated with: averaged parameters if there are any."""
        return self.variables | self.average


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Settings of a training step."""

    schedule: optax.Schedule
    steps: StepCounts
    temperature: Callable[..., jax.Array] = TEMPERATURES["linear"]  # of (step, start, annealing)
    start_temperature: float = 1.0
    auxiliary_weight: float = 1.0  # the final weight of the losses that layers sow
    average_decay: float = 0.0  # of the parameters' moving average; 0 keeps none
    num_microbatches: int = 1
    start_scale: float = 1.0  # the first factor of the loss
    grow_scale_every: int = 0  # finite steps after which the factor doubles; 0 keeps it

    @property
    def scales_loss(self) -> bool:
        """True if the loss is multiplied by a factor."""
        return bool(self.grow_scale_every) or self.start_scale != 1


def make_settings(config: ConfigDict, steps: StepCounts) -> StepSettings:
    """Returns the settings of a training step."""
    # Only some layers have a temperature or auxiliary losses; configs of others lack the section.
    of_layers: dict[str, Any] = {}
    if "temperature" in config:
        of_layers["temperature"] = TEMPERATURES[config.temperature.schedule]
        of_layers["start_temperature"] = config.temperature.start
    if "auxiliary" in config:
        of_layers["auxiliary_weight"] = config.auxiliary.weight
    return StepSettings(
        schedule=make_schedule(config, steps),
        steps=steps,
        **of_layers,
        average_decay=config.average,
        num_microbatches=config.accumulate,
        start_scale=config.loss_scale.start,
        grow_scale_every=config.loss_scale.grow_every,
    )


def create_state(
    seed: int | jax.Array,
    inputs: jax.Array | jax.ShapeDtypeStruct,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    plateau: optax.GradientTransformationExtraArgs,
    settings: StepSettings,
) -> TrainState:
    """Initialises the parameters and everything else that a run begins with.

    Args:
        seed: decides the parameters and all later draws.
        inputs: only their shape and dtype matter.
        plateau: the rule for the learning rate's scale.
    """
    init, rng = jax.random.split(jax.random.key(seed))
    variables = model.init(init, jnp.zeros(inputs.shape, inputs.dtype), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        attention=variables.get("attention", {}),
        average=start_average(params, batch_stats) if settings.average_decay else {},
        opt_state=optimizer.init(params),
        plateau=plateau.init(params),
        loss_scale=make_loss_scale(settings.start_scale),
        failed=jnp.bool_(False),
        rng=rng,
    )


def loss_fn(
    params: Any,
    variables: Mapping[str, Any],
    batch: Batch,
    rng: jax.Array,
    *,
    model: nn.Module,
    task: Task,
    auxiliary_weight: float | jax.Array = 1.0,
    scale: LossScale | None = None,
    head_only: bool = False,
) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """Computes the loss of a batch: (loss, (metrics, batch_stats)).

        loss = scale * (task's loss + auxiliary_weight * sum of the layers' losses)

    The metric `loss`, which is logged, is the task's alone, without auxiliary losses and scale.

    Args:
        params: the loss is differentiated with respect to these.
        variables: the model's other collections.
        rng: key of dropout and of the task's draws.
        auxiliary_weight: the weight of the losses that layers sow.
        scale: multiplies the loss; None for 1.
        head_only: treats everything below the head as constant.
    """
    if head_only:
        params = map_below_head(jax.lax.stop_gradient, params)
    variables = {**variables, "params": params}
    loss, (metrics, changed) = task.compute_loss(model, variables, batch, rng, head_only=head_only)
    sown = jax.tree.leaves(changed.pop("losses", {}))
    if sown:
        metrics["auxiliary"] = sum(leaf.astype(jnp.float32) for leaf in sown)
        loss = loss + auxiliary_weight * metrics["auxiliary"]
    if scale:
        loss = loss * scale.factor
    return loss, (metrics, changed.get("batch_stats", variables["batch_stats"]))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    sharding: ParameterSharding | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one training step: (state after it, metrics of the batch).

    If the loss, the gradients or the statistics are not finite, only `failed` is set: the state before the
    step can then be inspected. If only the scaled gradients overflow, the update is skipped, the step
    counter advances and the loss scale is halved.
    """
    attention, schedules = anneal_attention(state, settings)
    gradients, (metrics, batch_stats) = accumulate_gradients(
        partial(
            compute_gradients,
            state=state.replace(attention=attention),
            model=model,
            task=task,
            settings=settings,
            sharding=sharding,
        ),
        sharding.gather(state.params) if sharding else state.params,
        state.batch_stats,
        batch,
        jax.random.fold_in(state.rng, state.step),
        settings.num_microbatches,
        shard=sharding.shard if sharding else None,
    )
    params, opt_state = update_params(state, gradients, optimizer, settings)
    new = {
        "params": params,
        "batch_stats": batch_stats,
        "attention": attention,
        "average": update_average(state, params, settings.average_decay),
        "opt_state": opt_state,
    }
    old = {name: getattr(state, name) for name in new}

    grow_every = settings.grow_scale_every
    finite, overflows = check_finite(
        metrics["loss"], gradients, batch_stats, state.loss_scale, grow_every
    )
    failed = state.failed | ~(finite | overflows)
    scale = update_loss_scale(state.loss_scale, finite, grow_every)
    metrics["learning_rate"] = (
        settings.schedule(count_updates(state, settings)) * state.plateau.scale
    )
    metrics |= schedules
    if grow_every:
        metrics["loss_scale"] = state.loss_scale.factor
    state = state.replace(
        **keep_old_where(failed | overflows, new, old),
        step=keep_old_where(failed, state.step + 1, state.step),
        loss_scale=keep_old_where(failed, scale, state.loss_scale),
        failed=failed,
    )
    return state, metrics


def anneal_attention(state: TrainState, settings: StepSettings) -> tuple[Any, Metrics]:
    """Returns `attention` for the step about to be taken, and the annealed values, by name, for the log."""
    steps = settings.steps.annealing
    # Counted from 1, as in the published schedule.
    temperature = settings.temperature(state.step + 1, settings.start_temperature, steps)
    blend = linear_blend(state.step + 1, steps)
    variables = set_blend(set_temperature(state.variables, temperature), blend)
    annealed = {path[-1].key for path, _ in jax.tree.leaves_with_path(state.attention)}
    schedules = {"temperature": temperature, "blend": blend}
    return variables["attention"], {
        name: value for name, value in schedules.items() if name in annealed
    }


def compute_gradients(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    rng: jax.Array,
    *,
    state: TrainState,
    model: nn.Module,
    task: Task,
    settings: StepSettings,
    sharding: ParameterSharding | None = None,
) -> tuple[Any, tuple[Metrics, Any]]:
    """Computes the gradients of one microbatch: (gradients, (metrics, batch_stats)).

    Args:
        params: whole on every device.
        batch_stats: as the previous microbatch left them.
        rng: key of this microbatch.
        state: before the step, with the attention of the step.
    """
    steps = settings.steps
    growth = 1 - linear_blend(state.step, steps.auxiliary_ramp)
    loss = partial(
        loss_fn,
        variables={"batch_stats": batch_stats, "attention": state.attention},
        batch=batch,
        rng=rng,
        model=model,
        task=task,
        auxiliary_weight=settings.auxiliary_weight * growth,
        scale=state.loss_scale if settings.scales_loss else None,
    )
    gradient_of_all = jax.grad(loss, has_aux=True)
    if steps.head_only:
        gradient_of_head = jax.grad(partial(loss, head_only=True), has_aux=True)
        gradients, others = jax.lax.cond(
            count_updates(state, settings) < steps.head_only,
            gradient_of_head,
            gradient_of_all,
            params,
        )
    else:
        gradients, others = gradient_of_all(params)
    if settings.scales_loss:
        gradients = unscale_gradients(gradients, state.loss_scale)
    return sharding.shard(gradients) if sharding else gradients, others


def accumulate_gradients(
    compute: Callable[[Any, Any, Batch, jax.Array], tuple[Any, tuple[Metrics, Any]]],
    params: Any,
    batch_stats: Any,
    batch: Batch,
    rng: jax.Array,
    num_microbatches: int,
    shard: Callable[[Any], Any] | None = None,
) -> tuple[Any, tuple[Metrics, Any]]:
    """Averages the gradients of a batch's microbatches, with the memory of one microbatch.

    The result is the batch's own gradient if the loss is a mean over independent examples. Batch norm
    makes them dependent: it normalises by the statistics of a microbatch, and its running averages move
    once per microbatch. In a segmentation, all microbatches have the same weight, regardless of how many
    pixels are labelled.

    Args:
        compute: (params, batch_stats, batch, rng) to (gradients, (metrics, batch_stats)).
        params: float32, whatever the dtype of the computation; so are the gradients and their sum.
        batch_stats: handed from one microbatch to the next.
        batch: `[B, ...]`, B a multiple of the microbatches and of the devices.
        rng: key that is folded with the index of each microbatch.
        num_microbatches: 1 calls `compute` and nothing else.
        shard: shards a tree as `compute` shards its gradients; None if it does not.

    Returns:
        Mean gradients, mean metrics, and the statistics after the last microbatch.
    """
    if num_microbatches == 1:
        return compute(params, batch_stats, batch, rng)

    def accumulate_microbatch(
        carried: tuple[Any, Any], part: tuple[jax.Array, Batch]
    ) -> tuple[Any, Metrics]:
        total, batch_stats = carried
        index, microbatch = part
        key = jax.random.fold_in(rng, index)
        gradients, (metrics, batch_stats) = compute(params, batch_stats, microbatch, key)
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = shard(zeros) if shard else zeros, batch_stats
    parts = jnp.arange(num_microbatches), cut_batch(batch, num_microbatches)
    (total, batch_stats), metrics = jax.lax.scan(accumulate_microbatch, start, parts)
    gradients = jax.tree.map(lambda leaf: leaf / num_microbatches, total)
    return gradients, (jax.tree.map(lambda rows: rows.mean(axis=0), metrics), batch_stats)


def cut_batch(batch: Batch, number: int) -> Batch:
    """Cuts `[B, ...]` into `[number, B / number, ...]`: microbatch i has the examples i, i + number, ...

    Consecutive examples share a device. Strided microbatches need no communication; contiguous ones would.
    """

    def interleave_examples(values: jax.Array) -> jax.Array:
        return jnp.swapaxes(values.reshape(-1, number, *values.shape[1:]), 0, 1)

    return jax.tree.map(interleave_examples, dict(batch))


def count_updates(state: TrainState, settings: StepSettings) -> jax.Array:
    """Returns the number of updates so far: of steps, without those that the loss scale has skipped."""
    if not settings.grow_scale_every:
        return state.step
    # All parts of an optimizer count alike. Adam in one that is reset starts again, and comes after it.
    return optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")[0][1]


def update_params(
    state: TrainState,
    gradients: Any,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
) -> tuple[Any, optax.OptState]:
    """Applies the optimizer: (params, opt_state); in the first phase to the head alone."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: update * state.plateau.scale, updates)
    if settings.steps.head_only:
        # Weight decay moves even parameters with zero gradient, so updates are zeroed.
        head_only = count_updates(state, settings) < settings.steps.head_only
        updates = map_below_head(
            lambda update: jnp.where(head_only, jnp.zeros_like(update), update), updates
        )
    return optax.apply_updates(state.params, updates), opt_state


def start_average(params: Any, batch_stats: Any) -> dict[str, Any]:
    """Returns the average before the first step: copies, because a step donates its argument buffers."""
    return jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})


def update_average(state: TrainState, params: Any, decay: float) -> Any:
    """Moves the average of the parameters towards `params`, with a smaller decay early on."""
    if not decay:
        return state.average
    decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    average = optax.incremental_update(params, state.average["params"], 1 - decay)
    return {**state.average, "params": average}


def statistics_step(
    variables: Mapping[str, Any],
    batch: Batch,
    rng: jax.Array,
    step: int | jax.Array,
    number: int | jax.Array,
    *,
    model: nn.Module,
    task: Task,
    sharding: ParameterSharding | None = None,
) -> Any:
    """Returns `batch_stats` with those of the batch of a step, without training on it.

    With averaged parameters, activations have other means and variances than in training, and averaging the
    statistics does not give these. So they are computed from some batches before each evaluation: the mean
    over these batches, whatever the momentum of the norms.

    Args:
        rng: the run's, which decides the draws together with `step`.
        number: of the batches that are in the statistics already; with 0 they are forgotten.
    """
    variables, rng = _gather_params(variables, sharding), jax.random.fold_in(rng, step)
    with nn.intercept_methods(partial(_set_momentum, number / (number + 1))):
        _, (_, changed) = task.compute_loss(model, variables, batch, rng, head_only=False)
    return changed.get("batch_stats", variables["batch_stats"])


def _set_momentum(
    momentum: jax.Array,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Calls a method of a module; a batch norm gets another momentum before."""
    if isinstance(context.module, nn.BatchNorm):
        # Modules are frozen. This one exists only while the network is traced.
        object.__setattr__(context.module, "momentum", momentum)
    return call(*args, **kwargs)


def eval_step(
    variables: Mapping[str, Any],
    batch: Batch,
    *,
    model: nn.Module,
    task: Task,
    sharding: ParameterSharding | None = None,
) -> dict[str, jax.Array]:
    """Returns per-batch sums for the split's metrics; masked examples add nothing."""
    return task.sum_metrics(model, _gather_params(variables, sharding), batch)


def inspect_step(
    variables: Mapping[str, Any],
    batch: Batch,
    *,
    model: nn.Module,
    task: Task,
    sharding: ParameterSharding | None = None,
) -> dict[str, Any]:
    """Returns what the figures of a run show of each example of a batch, and the batch's mask."""
    seen = task.inspect_batch(model, _gather_params(variables, sharding), batch)
    return {**seen, "mask": batch["mask"]}


def _gather_params(
    variables: Mapping[str, Any], sharding: ParameterSharding | None
) -> dict[str, Any]:
    params = variables["params"]
    return {**variables, "params": sharding.gather(params) if sharding else params}
