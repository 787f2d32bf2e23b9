"""One training step of a whole network, compiled, and the flags that describe it."""

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import flags

from dyn.diagnostics import count_parameters
from experiments.benchmarks.options import DTYPE, RUNS
from experiments.train.memory import check_fits

SIZE = flags.DEFINE_integer("size", 64, "Pixels of a picture's side.", lower_bound=1)
# A batch norm inside attention has nothing to normalise in a batch of one.
BATCH = flags.DEFINE_integer("batch", 32, "Pictures a step.", lower_bound=2)
WIDTH = flags.DEFINE_integer("width", 64, "Features of a network's first stage.", lower_bound=1)

CLASSES = 1000
LEARNING_RATE = 1e-3


def settings() -> dict[str, Any]:
    """What the flags say of a step, for a benchmark's JSON."""
    return {
        "size": SIZE.value,
        "batch": BATCH.value,
        "width": WIDTH.value,
        "dtype": DTYPE.value,
        "runs": RUNS.value,
    }


class Step:
    """Forward, backward and Adam's update of a network on one batch, with the state that they change.

    Attributes:
        parameters: how many the network has.
        compile_seconds: what tracing and compiling took.
        temporary_bytes: the memory that the step needs beside its arguments, by XLA's own account; 0
            where XLA gives none.
    """

    def __init__(self, network: Callable[..., nn.Module]):
        """Initialises and compiles; size, batch, width and dtype are the flags'.

        Args:
            network: called with `num_classes`, `width` and `dtype`, makes the module.

        Raises:
            UserError: if a batch does not fit into memory.
        """
        model = network(num_classes=CLASSES, width=WIDTH.value, dtype=jnp.dtype(DTYPE.value))
        # What no device can hold is refused before it is asked for.
        check_fits(
            4 * BATCH.value * SIZE.value**2 * 3, "A batch", "choose a smaller --size or --batch"
        )
        keys = jax.random.split(jax.random.key(0))
        self._x = jax.random.normal(keys[0], (BATCH.value, SIZE.value, SIZE.value, 3))
        labels = jnp.arange(BATCH.value) % CLASSES
        optimizer = optax.adam(LEARNING_RATE)

        def create(key: jax.Array) -> tuple[Any, Any, Any]:
            variables = model.init(key, self._x[:2])
            params = variables.pop("params")
            # Sown while initialising; a step would return them as changed.
            for collection in ("intermediates", "losses"):
                variables.pop(collection, None)
            return params, variables, optimizer.init(params)

        def train(params: Any, rest: Any, moments: Any, x: jax.Array) -> tuple[Any, Any, Any]:
            def loss(params: Any) -> tuple[jax.Array, Any]:
                logits, changed = model.apply(
                    {"params": params, **rest}, x, train=True, mutable=["batch_stats"]
                )
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), changed

            gradients, changed = jax.grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments)
            return optax.apply_updates(params, updates), {**rest, **changed}, moments

        self._state = jax.jit(create)(keys[1])
        self.parameters = count_parameters(self._state[0])
        started = time.perf_counter()
        lowered = jax.jit(train, donate_argnums=(0, 1, 2)).lower(*self._state, self._x)
        self._compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        memory = self._compiled.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes if memory else 0

    def __call__(self) -> None:
        """Takes one step, and waits for its end."""
        self._state = jax.block_until_ready(self._compiled(*self._state, self._x))
