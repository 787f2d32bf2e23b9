"""The strictest JAX that tests can have, and four devices to shard over."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tests measure nothing, so compile quickly.
jax.config.update("jax_disable_most_optimizations", True)

# grain reads an absl flag when it starts workers; under pytest nobody has parsed any.
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
