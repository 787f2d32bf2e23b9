"""Whether what a run needs fits into memory, said before it is asked for."""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import jax

from experiments.core.errors import UserError

GIGABYTE = 1e9
LESS = (
    "choose a smaller --config.batch_size or network, cut the batch by --config.accumulate, or deal the "
    "parameters out to several devices by --config.shard_parameters=True"
)


def available() -> float:
    """The bytes that each device of this host can give; infinite where nobody says."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() != "cpu" or not hasattr(os, "sysconf"):
        return math.inf
    # Devices of a CPU share what there is.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()


def of_one_device(tree: Any) -> int:
    """The bytes that arrays, or shapes with shardings, take on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def check_fits(needed: float, what: str, less: str = LESS) -> None:
    """Returns if so many bytes for each device can be there.

    Raises:
        UserError: says how much is missing, and what makes it less.
    """
    if needed > (most := available()):
        raise UserError(
            f"{what} takes {needed / GIGABYTE:,.1f} GB on each device, which has {most / GIGABYTE:,.1f} GB: "
            f"{less}."
        )


@contextlib.contextmanager
def exhaustion_said() -> Iterator[None]:
    """Turns what JAX says when a device has no memory left into a sentence.

    Raises:
        UserError: instead of JAX's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"A device has no memory left ({reason}): {LESS}. The same command continues from the last "
            "checkpoint, if there is one; with other settings choose another --workdir."
        ) from error
