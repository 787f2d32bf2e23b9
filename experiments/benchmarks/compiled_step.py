"""Compiles the training step of one network for an accelerator, in a process of its own, and describes it.

    python -m experiments.benchmarks.compiled_step REQUEST.json RESULT.json

`experiments.benchmarks.accelerators` starts one for each row of its table. So an error of the compiler ends
one row, memory is free again after each, and the variables of `chips.make_environment` can be set before jax
is imported. The request is a `Request`, the result what `describe_program` returns, or `{"status": ...}`.
"""

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dyn.diagnostics import count_parameters
from dyn.ops.platforms import plan_for_platform
from experiments.benchmarks import hlo
from experiments.benchmarks.adam_step import (
    CLASSES,
    Measure,
    State,
    make_step,
    measure_classifier,
)
from experiments.benchmarks.chips import CHIPS, Chip, list_devices
from experiments.benchmarks.networks import make_config_task, make_networks
from experiments.benchmarks.schedules import Schedule, read_kernels
from experiments.core.errors import UserError
from experiments.core.files import write_json
from experiments.core.memory import count_bytes_on_one_device
from experiments.runs.checkpoints import with_sharding
from experiments.tasks.instance_segmentation import InstanceSegmentation
from experiments.train.sharding import AXIS, ParameterSharding, shardings_of, with_shards

# From -1, the least effort to find a fast program, to 0, the usual. Nothing changes between -0.45 and 0.
QUICK = {"exec_time_optimization_effort": -0.5}
OBJECT_CLASSES = 21  # of a detector: VOC's and the background. A mask is predicted for each of them
SOURCES = ("/dyn/", "/experiments/")
DEAREST = 40  # lines of the source that a result lists
# Sizes in the TPU compiler's messages about a full memory.
MEMORY_SIZES = {
    "temporary_bytes": r"HLO temporaries \(([\d.]+)([KMG])\)",
    "memory_bytes": r"Used ([\d.]+)([KMG]) of",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """A network and the chips that its training step is compiled for.

    Attributes:
        platform: the name of a chip, see `chips.CHIPS`.
        topology: 1, or chips such as 4x4.
        network: a name of `networks.make_networks`, or that of a config if `is_config`.
        depth: 18 or 50.
        size: side of a picture in pixels.
        batch: pictures per step on each chip.
        width: features of the first stage.
        dtype: of the computation.
        shard_parameters: splits parameters and Adam's moments over the chips.
        is_config: takes the network from a config, with its own depth, width and dtype.
        overrides: settings of the config that are changed, such as `model.depth=50`.
        settings: digest of all of the config's settings: those of another version are another network.
        quick: the compiler looks less long for a fast program.
        dump_folder: where the TPU compiler writes schedules; '' without.
    """

    platform: str
    topology: str
    network: str
    depth: int = 18
    size: int = 224
    batch: int = 128
    width: int = 64
    dtype: str = "bfloat16"
    shard_parameters: bool = False
    is_config: bool = False
    overrides: Sequence[str] = ()
    settings: str = ""
    quick: bool = False
    dump_folder: str = ""


def make_model(request: Request, pictures: Any) -> tuple[nn.Module, Measure, Any]:
    """Makes the network of a request, the function that measures its loss, and the shapes of its batch.

    Args:
        request: the request.
        pictures: shape of the pictures.
    """
    if not request.is_config:
        network = make_networks(request.depth)[request.network]
        model = network(num_classes=CLASSES, width=request.width, dtype=jnp.dtype(request.dtype))
        return model, measure_classifier, pictures
    task = make_config_task(request.network, request.overrides)
    if not isinstance(task, InstanceSegmentation):
        model = task.make_model(num_classes=CLASSES, spatial_axes=2)
        return model, measure_classifier, pictures
    model = task.make_model(num_classes=OBJECT_CLASSES, spatial_axes=2)

    def measure(model: nn.Module, variables: Any, batch: Any) -> tuple[jax.Array, Any]:
        loss, (_, changed) = task.compute_loss(model, variables, batch, jax.random.key(0), False)
        return loss, {name: tree for name, tree in changed.items() if name != "losses"}

    def like(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((pictures.shape[0], *shape), dtype, sharding=pictures.sharding)

    batch = {
        "inputs": pictures,
        "ids": like(pictures.shape[1:-1], jnp.uint8),
        "classes": like([task.config.detector.objects], jnp.int32),
        "sizes": like([2], jnp.int32),
    }
    return model, measure, batch


def compile_step(request: Request) -> dict[str, Any]:
    """Compiles the step that a request describes, and returns its description."""
    chip = CHIPS[request.platform]
    devices = list_devices(chip, request.topology)
    mesh = Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))
    shape = (len(devices) * request.batch, request.size, request.size, 3)
    pictures = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(AXIS)))
    model, measure, batch = make_model(request, pictures)

    started = time.perf_counter()
    with plan_for_platform(chip.platform), jax.set_mesh(mesh):
        create, _ = make_step(model)
        small = jax.ShapeDtypeStruct((2, *shape[1:]), jnp.float32)
        state: State = with_sharding(
            jax.eval_shape(lambda x: create(jax.random.key(0), x), small), NamedSharding(mesh, P())
        )
        sharding = None
        if request.shard_parameters:
            state = State(
                with_shards(state.params, mesh), state.rest, with_shards(state.moments, mesh)
            )
            sharding = ParameterSharding(NamedSharding(mesh, P()), shardings_of(state.params))
        _, train = make_step(model, sharding, measure)
        jitted = jax.jit(train, donate_argnums=0, out_shardings=shardings_of(state))
        lowered = jitted.lower(state, batch)
        traced = time.perf_counter()
        compiled = lowered.compile(compiler_options=QUICK if request.quick else None)
    seconds = time.perf_counter() - started
    kernels = {}
    if request.dump_folder:
        kernels = read_kernels(Path(request.dump_folder), chip.delay_slots)
    return {
        "parameters": count_parameters(state.params),
        "state_bytes": count_bytes_on_one_device((state.params, state.moments)),
        "trace_seconds": round(traced - started, 1),
        "compile_seconds": round(seconds, 1),
        **describe_memory(chip, compiled.memory_analysis()),
        **describe_program(chip, hlo.parse_module(compiled.as_text()), kernels),
    }


def describe_memory(chip: Chip, memory: Any) -> dict[str, Any]:
    """Describes the memory of a compiled program, and whether the chip has as much."""
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    total = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "status": "fits" if total <= chip.memory else "does not fit",
        "temporary_bytes": temporary,
        "memory_bytes": total,
    }


def describe_program(
    chip: Chip, module: hlo.Module, kernels: Mapping[str, Schedule]
) -> dict[str, Any]:
    """Describes what a compiled program costs on one chip.

    Args:
        chip: the accelerator.
        module: its program.
        kernels: the schedules of Pallas kernels on a TPU, by name.

    Returns:
        Numbers of one step; those of operations in a loop count for each turn.
        `cycles`: the compiler's estimates, and for each kernel the longer of its schedule and its traffic.
        `kernel_cycles`: the part of it that is kernels.
        `bytes`: read from the main memory and written to it, and `traffic_cycles`, the time that takes.
        `unpriced_cycles`: the same for operations without an estimate, copies in the background left out.
        `branch_cycles`: what the dearest branches of conditionals have more than those that count, the
            cheapest.
        `unknown_loops`: loops that count once because their turns are not constant.
        `missing_kernels`: kernels without a schedule.
        `collectives`: by kind. `operations`: the dearest lines of the source, see `group_operations`.
        A GPU's compiler has no estimates, so there `cycles` is 0.
    """
    per_byte = chip.clock / chip.bandwidth
    kernels = share_schedules(module, kernels)
    totals = dict.fromkeys(("cycles", "kernel_cycles", "bytes", "unpriced_cycles"), 0.0)
    unknown = missing = 0
    rows = []
    for operation, within, times in hlo.walk_operations(module):
        moved = hlo.count_traffic(module, operation, within)
        cycles, is_kernel = hlo.read_cycles(operation), hlo.is_kernel(operation)
        turns = 1.0 if times is None else times
        if operation.opcode == "while":
            unknown += hlo.count_trips(module, operation, within) is None
        if is_kernel and operation.name in kernels:
            schedule = kernels[operation.name]
            unknown += schedule.unknown_loops
            cycles = max(schedule.cycles, moved * per_byte)
            totals["kernel_cycles"] += turns * cycles
        missing += is_kernel and operation.name not in kernels
        # The compiler starts copies early, so that they take no time of their own.
        if cycles is None and not operation.opcode.endswith(("-start", "-done")):
            totals["unpriced_cycles"] += turns * moved * per_byte
        totals["cycles"] += turns * (cycles or 0)
        totals["bytes"] += turns * moved
        if moved or cycles:
            rows.append((operation, turns * (cycles or 0), turns * moved, turns))
    least, most = (
        sum(
            (hlo.read_cycles(one) or 0) * (turns or 1)
            for one, _, turns in hlo.walk_operations(module, choose)
        )
        for choose in (min, max)
    )
    return {
        **{name: round(total) for name, total in totals.items()},
        "branch_cycles": round(most - least),
        "traffic_cycles": round(totals["bytes"] * per_byte),
        "unknown_loops": unknown,
        "missing_kernels": missing,
        "collectives": hlo.count_collectives(module),
        "operations": group_operations(module, rows)[:DEAREST],
    }


def share_schedules(module: hlo.Module, kernels: Mapping[str, Schedule]) -> dict[str, Schedule]:
    """Adds the schedules of kernels that are alike, of which the compiler writes only one.

    Args:
        module: a compiled program.
        kernels: schedules by the name of the operation.
    """
    operations = [one for one, _, _ in hlo.walk_operations(module) if hlo.is_kernel(one)]
    bodies = {one.name: hlo.read_kernel_body(one) for one in operations}
    alike = {bodies[name]: kernels[name] for name in bodies if bodies[name] and name in kernels}
    return {name: alike[body] for name, body in bodies.items() if body in alike} | dict(kernels)


def group_operations(
    module: hlo.Module, rows: Iterable[tuple[hlo.Operation, float, float, float]]
) -> list[dict[str, Any]]:
    """Adds up the operations of each line of the source, and returns the sums, dearest first.

    Args:
        module: the program.
        rows: operations, and for each its cycles, its bytes, and the number of times that it runs.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for operation, *numbers in rows:
        name, source = hlo.find_source(module, operation, SOURCES)
        # JAX's name is a path of modules that ends with the primitive.
        primitive = name.rpartition("/")[2] or operation.opcode
        direction = " (backward)" if "transpose(" in name else ""
        sums = groups.setdefault((source, primitive + direction), [0.0, 0.0, 0.0])
        groups[source, primitive + direction] = [a + b for a, b in zip(sums, numbers, strict=True)]
    ordered = sorted(groups.items(), key=lambda item: item[1][:2], reverse=True)
    return [
        {
            "source": source,
            "name": name,
            "cycles": round(cycles),
            "bytes": round(moved),
            "times": round(times),
        }
        for (source, name), (cycles, moved, times) in ordered
    ]


def describe_failure(error: Exception) -> dict[str, Any]:
    """Describes a step that does not compile: it takes too much memory, or the compiler cannot do it."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return {"status": "fails", "message": kind + " ".join(text.split())[:300]}
    result: dict[str, Any] = {"status": "does not fit", "message": " ".join(text.split())[:200]}
    for key, pattern in MEMORY_SIZES.items():
        if size := re.search(pattern, text):
            result[key] = _read_bytes(*size.groups())
    if buffers := re.findall(r"Size: ([\d.]+)([KMG])", text):
        result["largest_buffers_bytes"] = sum(_read_bytes(*size) for size in buffers)
    return result


def _read_bytes(number: str, unit: str) -> int:
    """Returns the bytes of a size such as 18.30 G, as XLA writes it."""
    return round(float(number) * {"K": 2**10, "M": 2**20, "G": 2**30}[unit])


def run_request(request: Request) -> dict[str, Any]:
    """Compiles a step and describes it, or describes why that fails."""
    try:
        return compile_step(request)
    except (
        jax.errors.JaxRuntimeError,
        NotImplementedError,
        TypeError,
        UserError,
        ValueError,
    ) as error:
        return describe_failure(error)


if __name__ == "__main__":
    # Compilation is timed, so nothing may come from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    asked = Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    write_json(sys.argv[2], run_request(asked))
