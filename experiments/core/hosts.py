"""Agreement between the hosts of a run."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def max_over_hosts(number: int) -> int:
    """Returns the largest of the hosts' numbers; no host returns before all have called."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
