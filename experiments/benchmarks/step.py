"""Compiles one training step of a whole network, as its flags describe it."""

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags

from dyn.diagnostics import count_parameters
from experiments.benchmarks.adam_step import CLASSES, make_step
from experiments.benchmarks.options import DTYPE, RUNS
from experiments.core.memory import check_fits

SIZE = flags.DEFINE_integer("size", 64, "Side of a picture in pixels.", lower_bound=1)
# Batch norm inside attention needs at least two examples.
BATCH = flags.DEFINE_integer("batch", 32, "Pictures per step.", lower_bound=2)
WIDTH = flags.DEFINE_integer("width", 64, "Features of the network's first stage.", lower_bound=1)


def list_settings() -> dict[str, Any]:
    """Returns the flags of a step, for a benchmark's JSON."""
    return {flag.name: flag.value for flag in (SIZE, BATCH, WIDTH, DTYPE, RUNS)}


class TrainingStep:
    """Forward pass, backward pass and Adam's update of a network on one batch, with the state they change.

    Attributes:
        parameters: the number of the network's parameters.
        compile_seconds: the time that tracing and compiling took.
        temporary_bytes: the memory that the step needs beside its arguments, as XLA reports it; 0 if it
            does not.
    """

    def __init__(self, network: Callable[..., nn.Module]):
        """Initialises and compiles, with size, batch, width and dtype from the flags.

        Args:
            network: makes the module from `num_classes`, `width` and `dtype`.

        Raises:
            UserError: if a batch does not fit into memory.
        """
        model = network(num_classes=CLASSES, width=WIDTH.value, dtype=jnp.dtype(DTYPE.value))
        # A batch that no device can hold is an error before it is allocated.
        check_fits(
            4 * BATCH.value * SIZE.value**2 * 3, "A batch", "choose a smaller --size or --batch"
        )
        keys = jax.random.split(jax.random.key(0))
        self._x = jax.random.normal(keys[0], (BATCH.value, SIZE.value, SIZE.value, 3))
        create, train = make_step(model)
        self._state = jax.jit(create)(keys[1], self._x[:2])
        self.parameters = count_parameters(self._state.params)
        started = time.perf_counter()
        self._compiled = jax.jit(train, donate_argnums=0).lower(self._state, self._x).compile()
        self.compile_seconds = time.perf_counter() - started
        memory = self._compiled.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes if memory else 0

    def __call__(self) -> None:
        """Takes one step and waits until it is done."""
        self._state = jax.block_until_ready(self._compiled(self._state, self._x))
