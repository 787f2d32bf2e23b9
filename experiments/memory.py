"""Whether what a run needs fits into memory, said before it is asked for."""

import math
import os
from typing import Any

import jax

from experiments.errors import UserError

GIGABYTE = 1e9


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


def check_fits(needed: float, what: str) -> None:
    """Returns if so many bytes for each device can be there.

    Raises:
        UserError: says how much is missing, and what makes it less.
    """
    if needed > (most := available()):
        raise UserError(
            f"{what} takes {needed / GIGABYTE:,.1f} GB on each device, which has {most / GIGABYTE:,.1f} GB: "
            "choose a smaller --config.batch_size or network, cut the batch by --config.accumulate, or deal "
            "the parameters out to several devices by --config.shard_parameters=True."
        )
