"""Evaluation over a whole split, whatever the number of devices and hosts."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.data.pipeline import Batch
from experiments.metrics import means

Put = Callable[[Batch], Mapping[str, jax.Array]]


def evaluate(
    step: Callable[..., dict[str, jax.Array]], variables: Any, batches: Iterable[Batch], put: Put
) -> dict[str, float]:
    """Means over a split of what `step(variables, batch)` sums over a batch.

    Args:
        step: gives sums, among them `count`.
        variables: the model's.
        batches: this host's share of each batch, padded and masked.
        put: makes one global array of the hosts' shares.
    """
    total: dict[str, float] = {}
    for batch in batches:
        sums = jax.device_get(step(variables, put(batch)))
        total = {name: total.get(name, 0.0) + float(value) for name, value in sums.items()}
    return {name: float(value) for name, value in means(total).items()}


def collect(
    step: Callable[..., dict[str, Any]], variables: Any, batches: Iterable[Batch], put: Put
) -> dict[str, Any]:
    """What `step(variables, batch)` gives for each example of a split, in order, with `labels`."""
    parts = []
    for batch in batches:
        placed = put(batch)
        parts.append(jax.device_get(step(variables, placed)))
    joined = jax.tree.map(lambda *values: np.concatenate(values), *parts)
    real = joined.pop("mask") > 0
    return jax.tree.map(lambda values: values[real], joined)
