"""Compiles what a run computes, for the devices at hand: shardings, cost, and the compiled functions."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict, FrozenConfigDict
from optax.contrib import ReduceLROnPlateauState

from dyn.diagnostics import count_macs, count_parameters
from experiments.core.compilation import quick_compile_options
from experiments.core.errors import UserError
from experiments.core.memory import check_fits, count_bytes_on_one_device
from experiments.data import Example
from experiments.runs.checkpoints import with_sharding
from experiments.tasks import Task
from experiments.train.optimizer import StepCounts, make_optimizer, make_plateau
from experiments.train.sharding import (
    AXIS,
    ParameterSharding,
    find_mesh,
    shard_batch,
    shardings_of,
    with_shards,
)
from experiments.train.step import (
    TrainState,
    create_state,
    eval_step,
    inspect_step,
    make_settings,
    statistics_step,
    train_step,
)

BatchShapes = dict[str, jax.ShapeDtypeStruct]
# Settings that no compiled function depends on: runs that differ in these alone share a program.
NOT_COMPILED = ("seed", "data", "dataset", "name", "baseline", "input", "init_from")


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of a run; those whose names end with `step` are in `step.py`."""

    model: nn.Module
    mesh: Mesh
    state_shape: TrainState  # shapes, dtypes and shardings
    create_state: Callable[[int], TrainState]  # from a seed
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # of (state, batch)
    eval_step: Callable[..., dict[str, jax.Array]]  # of (variables, batch)
    inspect_step: Callable[..., dict[str, Any]]  # of (variables, batch)
    statistics_step: Callable[..., Any]  # of (variables, batch, rng, step, number)
    plateau: optax.GradientTransformationExtraArgs  # scales the learning rate down
    cost: Mapping[
        str, float
    ]  # parameters, MACs per example, seconds of compilation, FLOPs per step

    def shard_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Makes arrays over all devices from this host's share of a batch."""
        return shard_batch(batch, self.mesh)

    def replicate(self, tree: Any) -> Any:
        """Puts every array of a tree whole on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def update_plateau(self, state: ReduceLROnPlateauState, loss: float) -> ReduceLROnPlateauState:
        """Returns the scale of the learning rate after an evaluation with this loss."""
        return self.replicate(self.plateau.update({}, state, value=loss)[1])


# Programs by the settings and shapes that they were compiled for.
Programs = dict[tuple[Any, ...], Program]


def find_program(
    programs: Programs,
    config: ConfigDict,
    task: Task,
    num_classes: int,
    steps: StepCounts,
    train_example: Example,
    eval_example: Example,
) -> Program:
    """Returns the program of a run, as `compile_program` makes it: one of `programs`, or a new one.

    New programs are added to `programs`, those that earlier runs of this process have compiled.
    """
    compiled = {name: value for name, value in config.items() if name not in NOT_COMPILED}
    shapes = tuple(
        (name, np.shape(value), np.asarray(value).dtype.str)
        for example in (train_example, eval_example)
        for name, value in sorted(example.items())
    )
    key = (FrozenConfigDict(compiled), steps, num_classes, shapes, find_mesh())
    if key in programs:
        known = programs[key]
        return dataclasses.replace(known, cost={**known.cost, "compile_seconds": 0.0})
    programs[key] = compile_program(config, task, num_classes, steps, train_example, eval_example)
    return programs[key]


def compile_program(
    config: ConfigDict,
    task: Task,
    num_classes: int,
    steps: StepCounts,
    train_example: Example,
    eval_example: Example,
    mesh: Mesh | None = None,
) -> Program:
    """Makes and compiles what a run computes.

    Args:
        config: the experiment.
        task: its model, loss and metrics.
        num_classes: number of classes of the data set.
        steps: number of steps in each phase of the run.
        train_example: an example as training sees it; only shapes and dtypes matter.
        eval_example: the same for evaluation.
        mesh: the devices, with an axis `data` of any type; `find_mesh()` if left out.
    """
    mesh = find_mesh() if mesh is None else mesh
    train_batch = _batch_shapes(train_example, config.batch_size, mesh)
    eval_batch = _batch_shapes({**eval_example, "mask": np.float32(1)}, config.batch_size, mesh)
    model = task.make_model(num_classes, spatial_axes=train_batch["inputs"].ndim - 2)
    settings = make_settings(config, steps)
    optimizer = make_optimizer(config, settings.schedule, reset_at=steps.head_only)
    plateau = make_plateau(config, steps)

    create = partial(
        create_state,
        inputs=train_batch["inputs"],
        model=model,
        optimizer=optimizer,
        plateau=plateau,
        settings=settings,
    )
    state_shape = _trace_state(create, mesh, config.shard_parameters)
    # The state, its gradients and a batch: what any step needs.
    least = count_bytes_on_one_device((state_shape, state_shape.params, train_batch))
    check_fits(least, "The network with one batch")
    one = jax.ShapeDtypeStruct((1, *eval_batch["inputs"].shape[1:]), train_batch["inputs"].dtype)
    macs = count_macs(
        partial(model.apply, train=False), with_sharding(state_shape.variables, None), one
    )

    replicated = NamedSharding(mesh, P())
    parts = {"model": model, "task": task}
    if config.shard_parameters:
        parts["sharding"] = ParameterSharding(replicated, shardings_of(state_shape.params))
    started = time.monotonic()
    # A training step gives the memory of its state away.
    jitted = jax.jit(
        partial(train_step, optimizer=optimizer, settings=settings, **parts),
        donate_argnums=0,
        out_shardings=(shardings_of(state_shape), replicated),
    )
    compiled_train_step = jitted.lower(state_shape, train_batch).compile()
    if memory := compiled_train_step.memory_analysis():
        check_fits(memory.argument_size_in_bytes + memory.temp_size_in_bytes, "A training step")
    jitted = jax.jit(partial(eval_step, **parts), out_shardings=replicated)
    compiled_eval_step = jitted.lower(state_shape.eval_variables, eval_batch).compile()
    seconds = time.monotonic() - started
    # XLA counts the body of the loop over microbatches once. (The update is not in it, but it is small.)
    flops = (compiled_train_step.cost_analysis() or {}).get("flops", math.nan)

    return Program(
        model=model,
        mesh=mesh,
        state_shape=state_shape,
        create_state=partial(_run_once, create, shardings_of(state_shape)),
        train_step=compiled_train_step,
        eval_step=compiled_eval_step,
        inspect_step=jax.jit(partial(inspect_step, **parts), out_shardings=replicated),
        statistics_step=jax.jit(partial(statistics_step, **parts), out_shardings=replicated),
        plateau=plateau,
        cost={
            "parameters": count_parameters(state_shape.params),
            "macs": macs,
            "compile_seconds": round(seconds, 1),
            "xla_flops_per_step": flops * config.accumulate,
        },
    )


def _batch_shapes(example: Example, batch_size: int, mesh: Mesh) -> BatchShapes:
    """Returns the shapes of a global batch, split over the devices."""
    sharding = NamedSharding(mesh, P(AXIS))
    return {
        name: jax.ShapeDtypeStruct(
            (batch_size, *np.shape(value)), np.asarray(value).dtype, sharding=sharding
        )
        for name, value in example.items()
    }


def _trace_state(
    create: Callable[[Any], TrainState], mesh: Mesh, shard_parameters: bool
) -> TrainState:
    """Traces the making of a state: its shapes, dtypes and shardings."""
    try:
        shape = jax.eval_shape(create, jax.ShapeDtypeStruct((), np.uint32))
    except ValueError as error:
        # The layers' own messages name their fields, which come from the config.
        raise UserError(f"The network cannot be built: {error}") from error
    shape = with_sharding(shape, NamedSharding(mesh, P()))
    if not shard_parameters:
        return shape
    average = shape.average
    if average:
        average = {**average, "params": with_shards(average["params"], mesh)}
    return shape.replace(
        params=with_shards(shape.params, mesh),
        average=average,
        opt_state=with_shards(shape.opt_state, mesh),
    )


def _run_once(create: Callable[[Any], TrainState], shardings: Any, seed: int) -> TrainState:
    """Runs the initialisation of a state, compiled quickly."""
    lowered = jax.jit(create, out_shardings=shardings).lower(jax.ShapeDtypeStruct((), np.uint32))
    return lowered.compile(quick_compile_options())(np.uint32(seed))
