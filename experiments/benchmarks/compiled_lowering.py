"""Compiles the lowerings of one convolution for an accelerator, in a process of its own.

    python -m experiments.benchmarks.compiled_lowering REQUEST.json RESULT.json

`experiments.benchmarks.lowerings --platform=v5e` starts one for each case. The request has the name of a
chip, the fields of a `Case`, the lowerings, and the folder of the TPU compiler's schedules; the result has
the seconds of each phase and lowering, and the planner's choice. On a TPU they are the compiler's estimates
and the kernels' schedules, or the time of the bytes that are moved if that is longer; on a GPU they are the
latter.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dyn.ops import planner
from dyn.ops.platforms import plan_for_platform
from experiments.benchmarks import hlo
from experiments.benchmarks.chips import CHIPS, Chip, list_devices
from experiments.benchmarks.compiled_step import describe_program
from experiments.benchmarks.lowering_cases import PHASES, Case, make_function
from experiments.benchmarks.schedules import read_kernels
from experiments.core.files import write_json


def estimate_lowerings(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of every phase of the lowerings that can do it, and why some did not compile.

    `auto` is the planner's choice for the chip: without its mesh the size of its memory is not known.
    """
    chip, fields = CHIPS[request["platform"]], request["case"]
    case = Case(**{**fields, "spatial": tuple(fields["spatial"])})
    mesh = Mesh(list_devices(chip, "1"), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())
    arrays = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        jax.eval_shape(case.make_arrays),
    )
    with jax.set_mesh(mesh):
        auto = planner.plan(case.problem, chip.platform).choice
        names = [
            name
            for name in request["lowerings"]
            if not planner.why_impossible(name, case.problem, chip.platform)
        ]
    seconds: dict[str, dict[str, float]] = {phase: {} for phase in PHASES}
    failures = {}
    for phase in PHASES:
        for name in names:
            function = make_function(case, name, phase)
            with plan_for_platform(chip.platform), jax.set_mesh(mesh):
                try:
                    compiled = jax.jit(function).lower(arrays).compile()
                except jax.errors.JaxRuntimeError as error:
                    failures[f"{name}, {phase}"] = " ".join(str(error).split())[:200]
                    continue
            seconds[phase][name] = estimate_seconds(
                chip, compiled.as_text(), request["dump_folder"]
            )
    return {"status": "compiled", "seconds": seconds, "failures": failures, "auto": auto}


def estimate_seconds(chip: Chip, program: str, dump_folder: str) -> float:
    """Estimates the time of a compiled program, and clears the folder for the schedules of the next."""
    kernels = {}
    if dump_folder:
        kernels = read_kernels(Path(dump_folder), chip.delay_slots)
        for path in Path(dump_folder).iterdir():
            path.unlink()
    described = describe_program(chip, hlo.parse_module(program), kernels)
    return max(described["cycles"], described["traffic_cycles"]) / chip.clock


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    write_json(sys.argv[2], estimate_lowerings(asked))
