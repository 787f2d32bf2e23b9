"""Agreement between the hosts of a run."""

import hashlib

import jax
import numpy as np
from jax.experimental import multihost_utils


def max_over_hosts(number: int) -> int:
    """Returns the largest of the hosts' numbers; no host returns before all have called."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def hosts_agree(text: str) -> bool:
    """Returns whether all hosts have the same text; no host returns before all have called."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big")
    return max_over_hosts(number) == number and max_over_hosts(-number) == -number


def find_lost_process(error: BaseException | None) -> jax.errors.JaxRuntimeError | None:
    """Returns JAX's error about a lost process of the run, among an error and its causes, or None.

    A single process has no others. A device without memory is its own process's trouble.
    """
    while error and jax.process_count() > 1:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None
