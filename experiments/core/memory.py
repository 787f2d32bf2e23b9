"""Checks that a run fits into memory before it allocates any, and explains when it did not."""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import jax

from experiments.core.errors import UserError

GIGABYTE = 1e9
ADVICE = (
    "choose a smaller --config.batch_size or network, cut the batch with --config.accumulate, or shard the "
    "parameters over several devices with --config.shard_parameters=True"
)


def bytes_per_device() -> float:
    """Returns the memory of each device of this host; infinity where it is unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() != "cpu" or not hasattr(os, "sysconf"):
        return math.inf
    # The CPU's devices share the machine's memory.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()


def count_bytes_on_one_device(tree: Any) -> int:
    """Counts the bytes that arrays, or shapes with shardings, take on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def check_fits(num_bytes: float, name: str, advice: str = ADVICE) -> None:
    """Raises a UserError if `num_bytes` do not fit on each device.

    Its message begins with `name`, such as `A training step`, and ends with `advice`.
    """
    if num_bytes > (available := bytes_per_device()):
        raise UserError(
            f"{name} takes {num_bytes / GIGABYTE:,.1f} GB on each device, which has "
            f"{available / GIGABYTE:,.1f} GB: {advice}."
        )


@contextlib.contextmanager
def explain_out_of_memory(
    advice: str = f"{ADVICE}. The same command continues from the last checkpoint, if there is one; with "
    "other settings choose another --workdir",
) -> Iterator[None]:
    """Turns JAX's error about a full device into a UserError that ends with `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"A device has no memory left ({reason}): {advice}.") from error
