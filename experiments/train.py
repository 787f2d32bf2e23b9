"""The training loop, read straight down: data, devices, model, state, compilation, loop, test."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training.early_stopping import EarlyStopping
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

from dyn.diagnostics import count_macs, count_parameters
from dyn.schedules import linear_blend, linear_temperature, set_blend, set_temperature
from experiments import data, report
from experiments.checkpoint import Checkpoints, rank, with_sharding
from experiments.data import Example, Source, pipeline, transforms
from experiments.errors import UserError
from experiments.evaluate import collect, evaluate
from experiments.metrics import MetricLog
from experiments.progress import Progress, end_table, start_table
from experiments.tasks import classification
from experiments.validate import validate
from experiments.workdir import (
    claim,
    finished_summary,
    parameters_sha256,
    result_rows,
    start_rows,
    versions,
)

TASKS = {"classification": classification}


@struct.dataclass
class TrainState:
    """All that a step changes.

    `attention` holds the temperatures and blends, `plateau` the learning rate's scale.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    attention: Any
    opt_state: optax.OptState
    plateau: ReduceLROnPlateauState
    rng: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {
            "params": self.params,
            "batch_stats": self.batch_stats,
            "attention": self.attention,
        }


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains as `config` says, from where `workdir` stands, and returns the summary.

    Raises:
        UserError: for what the person who started it can mend.
    """
    validate(config)
    started = time.monotonic()
    lead = jax.process_index() == 0
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    task = TASKS[config.task]
    if lead:
        claim(workdir, config)
    if summary := finished_summary(workdir):
        end_table("already finished", result_rows(summary, workdir), quiet=not lead)
        return summary

    # ---------------------------------------------------------------- data
    dataset = data.load(config.data, config.seed)
    transform = {
        is_train: transforms.make(
            config.augment, config.image_size, **config.normalise, train=is_train
        )
        for is_train in (True, False)
    }
    epoch = math.ceil(len(dataset.splits["train"]) / config.batch_size)
    annealing = epoch * config.temperature.epochs
    ramp = epoch * config.auxiliary.epochs
    total_steps = epoch * config.epochs
    if config.steps:
        total_steps = min(total_steps, config.steps)

    def evaluation_batches(split: str) -> Any:
        source = dataset.splits[split]
        return pipeline.eval_batches(
            source, transform[False], batch_size=config.batch_size, **hosts
        )

    # ---------------------------------------------------------------- devices
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    replicated, by_example = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def put(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Makes one array over all devices of the hosts' shares of a batch."""
        return {
            name: jax.make_array_from_process_local_data(by_example, values)
            for name, values in batch.items()
        }

    # ---------------------------------------------------------------- model and state
    model = task.make_model(config, dataset)
    optimizer = make_optimizer(config)
    plateau = reduce_on_plateau(
        factor=config.plateau.factor,
        patience=config.plateau.patience,
        min_scale=config.plateau.min_learning_rate / config.optimizer.learning_rate,
    )
    example = transform[False](dataset.splits["train"][0])
    batch_shape = {
        "inputs": (config.batch_size, *example["inputs"].shape),
        "label": (config.batch_size,),
        "mask": (config.batch_size,),
    }
    dtypes = {"inputs": jnp.float32, "label": jnp.int32, "mask": jnp.float32}
    eval_batch = {
        name: jax.ShapeDtypeStruct(shape, dtypes[name], sharding=by_example)
        for name, shape in batch_shape.items()
    }
    train_batch = {name: eval_batch[name] for name in ("inputs", "label")}

    def create() -> TrainState:
        init, rng = jax.random.split(jax.random.key(config.seed))
        variables = model.init(init, jnp.zeros(batch_shape["inputs"]), train=False)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            attention=variables.get("attention", {}),
            opt_state=optimizer.init(params),
            plateau=plateau.init(params),
            rng=rng,
        )

    shape = with_sharding(jax.eval_shape(create), replicated)
    checkpoints = Checkpoints(workdir / "checkpoints")
    start_step = checkpoints.latest_step()
    if start_step is None:
        start_step = 0
        # It runs once: what XLA would spend on making it fast on a CPU is half a minute of waiting.
        quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        options = quick if jax.default_backend() == "cpu" else None
        state = jax.jit(create, out_shardings=replicated).lower().compile(options)()
        progress: dict[str, Any] = {"seconds": 0.0, "best": None, "early_stopping": None}
    else:
        state, progress = checkpoints.restore(start_step, shape)
    # Flax counts from the evaluation after the last good one.
    stopping = EarlyStopping(patience=config.early_stopping.patience - 1)
    if progress["early_stopping"]:
        stopping = stopping.replace(**progress["early_stopping"])

    one = jax.ShapeDtypeStruct((1, *batch_shape["inputs"][1:]), jnp.float32)
    cost = {
        "parameters": count_parameters(shape.params),
        "macs": count_macs(lambda v, x: model.apply(v, x, train=False), shape.variables, one),
    }
    start_table(
        f"{config.name} on {dataset.name}",
        start_rows(config, dataset, cost, workdir, start_step, epoch, total_steps),
        quiet=not lead,
    )

    # ---------------------------------------------------------------- compilation
    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict]:
        # Counted from one, as in the published schedule.
        temperature = linear_temperature(state.step + 1, config.temperature.start, annealing)
        blend = linear_blend(state.step + 1, annealing)
        variables = set_blend(set_temperature(state.variables, temperature), blend)
        auxiliary_weight = config.auxiliary.weight * (1 - linear_blend(state.step, ramp))

        def loss(params: Any) -> Any:
            rng = jax.random.fold_in(state.rng, state.step)
            value, (metrics, changed) = task.loss(
                model, {**variables, "params": params}, batch, rng
            )
            sown = jax.tree.leaves(changed.pop("losses", {}))
            if sown:
                metrics["auxiliary"] = sum(leaf.astype(jnp.float32) for leaf in sown)
                value = value + auxiliary_weight * metrics["auxiliary"]
            return value, (metrics, changed)

        gradients, (metrics, changed) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.plateau.scale, updates)
        metrics["learning_rate"] = config.optimizer.learning_rate * state.plateau.scale
        annealed = {path[-1].key for path, _ in jax.tree.leaves_with_path(state.attention)}
        schedules = {"temperature": temperature, "blend": blend}
        metrics |= {name: value for name, value in schedules.items() if name in annealed}
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=changed.get("batch_stats", state.batch_stats),
            attention=variables["attention"],
            opt_state=opt_state,
        )
        return state, metrics

    def evaluation_step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return task.evaluation_sums(model, variables, batch)

    compile_started = time.monotonic()
    train_step = (
        jax.jit(train_step, donate_argnums=0, out_shardings=replicated)
        .lower(shape, train_batch)
        .compile()
    )
    evaluation_step = (
        jax.jit(evaluation_step, out_shardings=replicated)
        .lower(shape.variables, eval_batch)
        .compile()
    )
    cost["compile_seconds"] = round(time.monotonic() - compile_started, 1)
    cost["xla_flops_per_step"] = (train_step.cost_analysis() or {}).get("flops", math.nan)

    # ---------------------------------------------------------------- loop
    batches = pipeline.train_batches(
        dataset.splits["train"],
        transform[True],
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        num_threads=config.input.threads,
        num_workers=config.input.workers,
        **hosts,
    )
    if lead:
        report.write_skipped(workdir, dataset.skipped)
    log = MetricLog(workdir, start_step or -1, config.tensorboard) if lead else None
    earlier = progress["seconds"]

    def write(step: int, split: str, metrics: dict[str, float]) -> None:
        if log:
            log.write(step, split, metrics)

    def save(step: int, metrics: dict[str, float] | None = None) -> None:
        progress["seconds"] = earlier + time.monotonic() - started
        checkpoints.save(step, state, progress, metrics)

    step = start_step
    with Progress(total_steps, start_step, quiet=not lead) as shown:
        shown.say(
            f"compiled in {cost['compile_seconds']:.1f} s; "
            f"{cost['xla_flops_per_step'] / 1e9:.2f} GFLOP a step by XLA's count"
        )
        # The order matters. Rows are written before the checkpoint of their step: a run that is
        # stopped in between drops the rows past its checkpoint and writes them again.
        while step < total_steps and not stopping.should_stop:
            state, metrics = train_step(state, put(next(batches)))
            step += 1
            shown.update(step, metrics["loss"])
            if step % config.log_every == 0:
                metrics = {name: float(value) for name, value in metrics.items()}
                check_finite(metrics["loss"], step)
                write(step, "train", metrics)
            if step % epoch == 0 or step == total_steps:
                batches_left = evaluation_batches("validation")
                metrics = evaluate(evaluation_step, state.variables, batches_left, put)
                check_finite(metrics["loss"], step)
                write(step, "validation", metrics)
                # Losses at different temperatures do not compare: patience begins behind annealing.
                if step >= annealing or not state.attention:
                    _, reduced = plateau.update({}, state.plateau, value=metrics["loss"])
                    state = state.replace(plateau=jax.device_put(reduced, replicated))
                    if config.early_stopping.patience:
                        stopping = stopping.update(metrics["loss"])
                        progress["early_stopping"] = dataclasses.asdict(stopping)
                if progress["best"] is None or rank(metrics) >= rank(progress["best"]):
                    progress["best"] = {"step": step, **metrics}
                save(step, metrics)
                shown.row(step, metrics)
            elif step % config.checkpoint_every == 0:
                check_finite(float(metrics["loss"]), step)
                save(step)
        if stopping.should_stop:
            shown.say(f"stopped early: no lower loss in {config.early_stopping.patience} epochs")
    batches.close()
    checkpoints.wait()

    # ---------------------------------------------------------------- test and pictures
    checksum = parameters_sha256(state.params)
    best, _ = checkpoints.restore(progress["best"]["step"], shape)
    test = evaluate(evaluation_step, best.variables, evaluation_batches("test"), put)
    write(progress["best"]["step"], "test", test)
    found = collect(
        jax.jit(
            lambda variables, batch: {
                **task.inspection(model, variables, batch),
                "labels": batch["label"],
                "mask": batch["mask"],
            },
            out_shardings=replicated,
        ),
        best.variables,
        evaluation_batches("test"),
        put,
    )
    checkpoints.close()
    summary = {
        "config": config.name,
        "dataset": dataset.name,
        "test": test,
        "best": progress["best"],
        "steps": step,
        **cost,
        "params_sha256": checksum,
        "seconds": round(earlier + time.monotonic() - started, 1),
        "examples": {name: len(split) for name, split in dataset.splits.items()},
        "skipped": len(dataset.skipped),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions(),
    }
    if lead:
        log.close()
        report.training_curves(log.rows(), workdir / "figures" / "curves.png")
        task.pictures(
            found,
            Prepared(dataset.splits["test"], transform[False]),
            list(dataset.classes),
            workdir / "figures",
            config.seed,
        )
        # Last: its presence says that the run is finished.
        report.write_json(workdir / "summary.json", summary)
        end_table("finished", result_rows(summary, workdir))
    return summary


def check_finite(loss: float, step: int) -> None:
    """Stops before a checkpoint of broken parameters replaces a good one."""
    if not math.isfinite(loss):
        raise UserError(
            f"The loss is {loss} at step {step}. The last checkpoint is intact; try a lower "
            "--config.optimizer.learning_rate (in another --workdir), or --config.dtype=float32."
        )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A split as the network sees it."""

    source: Source
    transform: Callable[[Example], Example]

    def __getitem__(self, index: int) -> Example:
        return self.transform(self.source[index])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimiser that `config.optimizer` names, at a constant learning rate."""
    rate, decay = config.optimizer.learning_rate, config.optimizer.weight_decay
    match config.optimizer.name:
        case "adam" if decay == 0:
            return optax.adam(rate)
        case "adam" | "adamw":
            return optax.adamw(rate, weight_decay=decay)
        case _:  # sgd; `validate` knows the names
            return optax.chain(
                optax.add_decayed_weights(decay), optax.sgd(rate, momentum=0.9, nesterov=True)
            )
