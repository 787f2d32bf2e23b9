"""Compiles a small program with loops and Pallas kernels for a TPU, and writes what is counted of it.

    python compile_kernels.py PLATFORM STEPS DUMP_FOLDER RESULT.json

Not a test: `test_accelerators_tpu.py` runs it, with the variables that the compiler needs.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import hlo
from experiments.benchmarks.chips import CHIPS, list_devices
from experiments.benchmarks.compiled_step import describe_program
from experiments.benchmarks.schedules import read_kernels

TAPS = 9


def add_products(x, kernels, y):
    """Adds the products of a sample with nine kernels."""

    def body(tap, total):
        return total + jnp.dot(x[0], kernels[tap], preferred_element_type=jnp.float32)

    y[0] = jax.lax.fori_loop(0, TAPS, body, jnp.zeros(y.shape[1:], jnp.float32))


def apply_kernel(x, kernels):
    samples = len(x)
    return pl.pallas_call(
        add_products,
        grid=(samples,),
        in_specs=[
            pl.BlockSpec((1, 256, 128), lambda i: (i, 0, 0)),
            pl.BlockSpec((TAPS, 128, 128), lambda i: (0, 0, 0)),
        ],
        out_specs=pl.BlockSpec((1, 256, 128), lambda i: (i, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((samples, 256, 128), jnp.float32),
        name="add_products",
    )(x, kernels)


def program(x, kernels):
    """Runs the kernel once, and three times in a loop."""
    first = apply_kernel(x, kernels)
    return jax.lax.fori_loop(
        0, 3, lambda i, y: jnp.sin(apply_kernel(y.astype(x.dtype), kernels)), first
    )


def main(platform, steps, dump_folder, result):
    chip = CHIPS[platform]
    mesh = Mesh(list_devices(chip, "1"), ("data",), axis_types=(AxisType.Auto,))
    shape = partial(
        jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(program).lower(shape((int(steps), 256, 128)), shape((TAPS, 128, 128)))
        text = lowered.compile().as_text()
    module = hlo.parse_module(text)
    kernels = read_kernels(Path(dump_folder), chip.delay_slots)
    turns = [
        hlo.count_trips(module, operation, within)
        for operation, within, _ in hlo.walk_operations(module)
        if operation.opcode == "while"
    ]
    described = describe_program(chip, module, kernels)
    found = {
        "turns": turns,
        "kernels": [
            kernels[o.name].cycles for o, _, _ in hlo.walk_operations(module) if hlo.is_kernel(o)
        ],
        "described": described,
    }
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
