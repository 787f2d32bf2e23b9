"""Evaluation over a whole split, whatever the number of devices and hosts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.data.pipeline import Batch

Put = Callable[[Batch], Mapping[str, jax.Array]]


def evaluate(
    step: Callable[..., dict[str, jax.Array]], variables: Any, batches: Iterable[Batch], put: Put
) -> Iterator[dict[str, np.ndarray]]:
    """What `step(variables, batch)` gives for each batch of a split, on the host.

    Args:
        step: gives what a task measures by.
        variables: the model's.
        batches: this host's share of each batch, padded and masked.
        put: makes one global array of the hosts' shares.
    """
    for batch in batches:
        yield jax.device_get(step(variables, put(batch)))


def collect(
    step: Callable[..., dict[str, Any]], variables: Any, batches: Iterable[Batch], put: Put
) -> dict[str, Any]:
    """What `step(variables, batch)` gives for each example of a split, in order."""
    parts = list(evaluate(step, variables, batches, put))
    joined = jax.tree.map(lambda *values: np.concatenate(values), *parts)
    real = joined.pop("mask") > 0
    return jax.tree.map(lambda values: values[real], joined)
