"""Sets up the strictest JAX, four CPU devices, and one compilation cache for all tests."""

import itertools
import os
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The TPU compiler, where it is installed, looks for no TPU, and may be there once for each worker.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Through the environment, so that workers and the processes that tests start share it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# XLA's newer code generator for fusions compiles our small programs in twice the time of the older one. A
# flag that a jaxlib does not know would end the process, hence the version.
if metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    )

import jax
import numpy as np
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tests measure nothing, so compile quickly.
jax.config.update("jax_disable_most_optimizations", True)

FINISHED = itertools.count(1)  # tests of this process

# grain reads an absl flag when it starts workers; under pytest nobody has parsed any.
flags.FLAGS.mark_as_parsed()


@pytest.hookimpl(tryfirst=True)  # before the marks select
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the examples of docstrings as matrix, all but the first one that people copy.

    `DYN_TEST_PART=2/3` keeps those tests of the marks matrix and tpu whose names have a checksum of 2
    modulo 3.
    """
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.path.stem != "od_conv":
            item.add_marker("matrix")
    remainder, parts = map(int, os.environ.get("DYN_TEST_PART", "0/1").split("/"))
    others = [
        item
        for item in items
        if (item.get_closest_marker("matrix") or item.get_closest_marker("tpu"))
        and zlib.crc32(item.nodeid.encode()) % parts != remainder
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        left_out = set(others)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def drop_programs() -> Iterator[None]:
    """Frees compiled programs now and then: thousands of them exhaust a process's memory maps."""
    yield
    if next(FINISHED) % 25 == 0:
        jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
