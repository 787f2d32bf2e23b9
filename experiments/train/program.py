"""What a run computes, compiled: its state, one training step, one evaluation step."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

from dyn.diagnostics import count_macs, count_parameters
from dyn.schedules import (
    geometric_temperature,
    linear_blend,
    linear_temperature,
    set_blend,
    set_temperature,
)
from experiments.core.errors import UserError
from experiments.data import Dataset, Example
from experiments.runs.checkpoints import with_sharding
from experiments.tasks import Task
from experiments.train.accumulation import accumulate
from experiments.train.loss_scale import (
    LossScale,
    next_scale,
    outcome,
    start_scale,
    unless,
    unscale,
)
from experiments.train.memory import check_fits, of_one_device
from experiments.train.optimizer import Lengths, make_optimizer, make_schedule, of_head
from experiments.train.sharding import AXIS, make_mesh, shardings_of, with_shards

ANNEALING = {"geometric": geometric_temperature, "linear": linear_temperature}


@struct.dataclass
class TrainState:
    """All that a step changes.

    `attention` holds the temperatures and blends, `average` the moving average of the parameters (empty
    where none is kept), `plateau` the learning rate's scale. Once `failed`, nothing changes any more.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    attention: Any
    average: Any
    opt_state: optax.OptState
    plateau: ReduceLROnPlateauState
    loss_scale: LossScale
    failed: jax.Array
    rng: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is trained with."""
        return {
            "params": self.params,
            "batch_stats": self.batch_stats,
            "attention": self.attention,
        }

    @property
    def evaluated(self) -> dict[str, Any]:
        """What the model is evaluated with: the averaged parameters where there are any."""
        return self.variables | ({"params": self.average} if self.average else {})


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of a run. Runs that differ in seed or in examples alone share them.

    Attributes:
        model: the network.
        shape: the state's shapes, dtypes and shardings.
        create: a new state, from a seed.
        train_step: (state, batch) to (state, metrics).
        evaluation_step: (variables, batch) to what the batch adds to the metrics.
        inspection: (variables, batch) to what the pictures of a run are drawn from.
        reduce: (plateau, validation loss) to the plateau after it.
        put: makes one array over all devices of the hosts' shares of a batch.
        whole: puts every array of a tree on every device, such as parameters that are sharded.
        cost: parameters, multiply-adds of an example, seconds of compilation, XLA's FLOPs of a step.
    """

    model: nn.Module
    shape: TrainState
    create: Callable[[int], TrainState]
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluation_step: Callable[..., dict[str, jax.Array]]
    inspection: Callable[..., dict[str, Any]]
    reduce: Callable[[ReduceLROnPlateauState, float], ReduceLROnPlateauState]
    put: Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]
    whole: Callable[[Any], Any]
    cost: Mapping[str, float]


def build(
    config: ConfigDict,
    task: Task,
    dataset: Dataset,
    lengths: Lengths,
    train_example: Example,
    eval_example: Example,
) -> Program:
    """Makes and compiles what a run computes.

    Args:
        config: the experiment.
        task: makes the model and its loss.
        dataset: its classes and shape decide about the model; no example is read.
        lengths: the schedules' steps.
        train_example: an example as training sees it; only its shapes matter.
        eval_example: the same for evaluation.

    Raises:
        UserError: if the network cannot be built.
    """
    mesh = make_mesh()
    replicated, by_example = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

    def put(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(by_example, values)
            for name, values in batch.items()
        }

    def batch_of(example: Example) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(
                (config.batch_size, *np.shape(value)), np.asarray(value).dtype, sharding=by_example
            )
            for name, value in example.items()
        }

    train_batch = batch_of(train_example)
    eval_batch = batch_of({**eval_example, "mask": np.float32(1)})

    # ---------------------------------------------------------------- model and state
    model = task.make_model(len(dataset.classes), spatial_axes=len(dataset.shape) - 1)
    schedule = make_schedule(config, lengths)
    optimizer = make_optimizer(config, schedule, restart_at=lengths.head)
    plateau = reduce_on_plateau(
        factor=config.plateau.factor,
        patience=config.plateau.patience,
        min_scale=config.plateau.min_learning_rate / config.optimizer.learning_rate,
    )
    anneal = ANNEALING[config.temperature.schedule]
    grow_every = config.loss_scale.grow_every
    scaled = grow_every or config.loss_scale.start != 1

    def create(seed: jax.Array) -> TrainState:
        init, rng = jax.random.split(jax.random.key(seed))
        inputs = train_batch["inputs"]
        variables = model.init(init, jnp.zeros(inputs.shape, inputs.dtype), train=False)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            attention=variables.get("attention", {}),
            # Not the same arrays: a step gives its arguments' memory away.
            average=jax.tree.map(jnp.copy, params) if config.average else {},
            opt_state=optimizer.init(params),
            plateau=plateau.init(params),
            loss_scale=start_scale(config.loss_scale.start),
            failed=jnp.bool_(False),
            rng=rng,
        )

    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    try:
        shape = jax.eval_shape(create, seed)
    except ValueError as error:
        # A layer says what it cannot do in a sentence; the fields come from the person's config.
        raise UserError(f"The network cannot be built: {error}") from error
    shape = with_sharding(shape, replicated)
    if config.shard_parameters:
        shape = shape.replace(
            params=with_shards(shape.params, mesh),
            average=with_shards(shape.average, mesh),
            opt_state=with_shards(shape.opt_state, mesh),
        )
    shardings = shardings_of(shape)
    # The state, its gradients, and a batch: what any step needs.
    least = of_one_device((shape, shape.params, train_batch))
    check_fits(least, "The network with one batch")
    one = train_batch["inputs"]
    one = jax.ShapeDtypeStruct((1, *eval_batch["inputs"].shape[1:]), one.dtype)
    cost = {
        "parameters": count_parameters(shape.params),
        "macs": count_macs(lambda v, x: model.apply(v, x, train=False), shape.variables, one),
    }

    # ---------------------------------------------------------------- steps
    def place(tree: Any, sharding: Any) -> Any:
        # Left to itself, XLA fetches other devices' activations where these are fewer numbers.
        return jax.lax.with_sharding_constraint(tree, sharding) if config.shard_parameters else tree

    def fetched(variables: Any) -> Any:
        return {**variables, "params": place(variables["params"], replicated)}

    def train_step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        # Counted from one, as in the published schedule.
        temperature = anneal(state.step + 1, config.temperature.start, lengths.annealing)
        blend = linear_blend(state.step + 1, lengths.annealing)
        variables = set_blend(set_temperature(state.variables, temperature), blend)
        only_head = state.step < lengths.head
        auxiliary_weight = config.auxiliary.weight * (1 - linear_blend(state.step, lengths.ramp))

        def gradient(params: Any, batch_stats: Any, batch: Any, rng: jax.Array) -> Any:
            def loss(params: Any, **stage: bool) -> Any:
                if stage:
                    params = of_head(jax.lax.stop_gradient, params)
                seen = {**variables, "params": params, "batch_stats": batch_stats}
                value, (metrics, changed) = task.compute_loss(model, seen, batch, rng, **stage)
                sown = jax.tree.leaves(changed.pop("losses", {}))
                if sown:
                    metrics["auxiliary"] = sum(leaf.astype(jnp.float32) for leaf in sown)
                    value = value + auxiliary_weight * metrics["auxiliary"]
                if scaled:
                    value = value * state.loss_scale.factor
                return value, (metrics, changed.get("batch_stats", batch_stats))

            def everything() -> Any:
                return jax.grad(loss, has_aux=True)(params)

            def head_alone() -> Any:
                return jax.grad(partial(loss, head_only=True), has_aux=True)(params)

            if lengths.head:
                gradients, others = jax.lax.cond(only_head, head_alone, everything)
            else:
                gradients, others = everything()
            if scaled:
                gradients = unscale(gradients, state.loss_scale)
            return place(gradients, shardings.params), others

        gradients, (metrics, batch_stats) = accumulate(
            gradient,
            place(state.params, replicated),
            state.batch_stats,
            batch,
            jax.random.fold_in(state.rng, state.step),
            config.accumulate,
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.plateau.scale, updates)
        if lengths.head:  # weight decay asks for no gradient
            updates = of_head(lambda u: jnp.where(only_head, jnp.zeros_like(u), u), updates)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if config.average:
            # Shorter at first, so that the beginning is forgotten.
            decay = jnp.minimum(config.average, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update(params, average, 1 - decay)

        # The loop looks at `failed` only now and then. Until it does, the state stays that before the step,
        # so that there is something to look at, and nothing broken to be saved.
        finite, overflows = outcome(
            metrics["loss"], gradients, batch_stats, state.loss_scale, grow_every
        )
        failed = state.failed | ~(finite | overflows)

        metrics["learning_rate"] = schedule(state.step) * state.plateau.scale
        annealed = {path[-1].key for path, _ in jax.tree.leaves_with_path(state.attention)}
        schedules = {"temperature": temperature, "blend": blend}
        metrics |= {name: value for name, value in schedules.items() if name in annealed}
        if grow_every:
            metrics["loss_scale"] = state.loss_scale.factor
        new = {
            "params": params,
            "batch_stats": batch_stats,
            "attention": variables["attention"],
            "average": average,
            "opt_state": opt_state,
        }
        old = {name: getattr(state, name) for name in new}
        state = state.replace(
            **unless(failed | overflows, new, old),
            step=unless(failed, state.step + 1, state.step),
            loss_scale=unless(
                failed, next_scale(state.loss_scale, finite, grow_every), state.loss_scale
            ),
            failed=failed,
        )
        return state, metrics

    def evaluation_step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return task.sum_metrics(model, fetched(variables), batch)

    def inspection(variables: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        seen = task.inspect_batch(model, fetched(variables), batch)
        return {**seen, "mask": batch["mask"]}

    # ---------------------------------------------------------------- compilation
    started = time.monotonic()
    jit = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated))
    compiled_train_step = jit.lower(shape, train_batch).compile()
    if memory := compiled_train_step.memory_analysis():
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        check_fits(held, "A training step")
    jit = jax.jit(evaluation_step, out_shardings=replicated)
    compiled_evaluation_step = jit.lower(shape.evaluated, eval_batch).compile()
    cost["compile_seconds"] = round(time.monotonic() - started, 1)
    # XLA counts the body of the loop over microbatches once. (The update is not in it, but small.)
    flops = (compiled_train_step.cost_analysis() or {}).get("flops", math.nan)
    cost["xla_flops_per_step"] = flops * config.accumulate

    # It runs once a run: what XLA would spend on making it fast on a CPU is half a minute of waiting.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    options = quick if jax.default_backend() == "cpu" else None
    initialise = jax.jit(create, out_shardings=shardings).lower(seed)

    def reduce(state: ReduceLROnPlateauState, loss: float) -> ReduceLROnPlateauState:
        _, reduced = plateau.update({}, state, value=loss)
        return jax.device_put(reduced, replicated)

    return Program(
        model=model,
        shape=shape,
        create=lambda number: initialise.compile(options)(np.uint32(number)),
        train_step=compiled_train_step,
        evaluation_step=compiled_evaluation_step,
        inspection=jax.jit(inspection, out_shardings=replicated),
        reduce=reduce,
        put=put,
        whole=lambda tree: jax.device_put(tree, replicated),
        cost=cost,
    )
