"""Gradients of batches that do not fit: cut into microbatches, which are taken one after another."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def accumulate(
    gradient: Callable[[Any, Any, Batch, jax.Array], tuple[Any, tuple[Metrics, Any]]],
    params: Any,
    batch_stats: Any,
    batch: Batch,
    rng: jax.Array,
    number: int,
) -> tuple[Any, tuple[Metrics, Any]]:
    """The mean gradient over the microbatches of a batch, with the memory of one.

    It is the batch's own gradient where the loss is a mean over examples that do not look at each
    other. Batch norm does look: it normalises by the statistics of a microbatch, and its running
    averages move `number` times. Of a segmentation, each microbatch counts the same, however many of
    its pixels count.

    Args:
        gradient: (params, batch_stats, batch, rng) to (gradients, (metrics, batch_stats)).
        params: float32, whatever the computation's dtype; so are the gradients and their sum.
        batch_stats: what one microbatch changes the next one begins with.
        batch: `[B, ...]`, B a multiple of `number` and of the devices.
        rng: each microbatch has a key of its own, folded from it.
        number: microbatches; 1 calls `gradient` and nothing else.

    Returns:
        What `gradient` gives: mean gradients, mean metrics, and the statistics after the last microbatch.
    """
    if number == 1:
        return gradient(params, batch_stats, batch, rng)

    def add(carried: tuple[Any, Any], turn: tuple[jax.Array, Batch]) -> tuple[Any, Metrics]:
        total, batch_stats = carried
        index, microbatch = turn
        key = jax.random.fold_in(rng, index)
        gradients, (metrics, batch_stats) = gradient(params, batch_stats, microbatch, key)
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), metrics

    start = jax.tree.map(jnp.zeros_like, params), batch_stats
    turns = jnp.arange(number), microbatches(batch, number)
    (total, batch_stats), metrics = jax.lax.scan(add, start, turns)
    gradients = jax.tree.map(lambda leaf: leaf / number, total)
    return gradients, (jax.tree.map(lambda rows: rows.mean(axis=0), metrics), batch_stats)


def microbatches(batch: Batch, number: int) -> Batch:
    """Cuts `[B, ...]` into `[number, B / number, ...]`: microbatch i has the examples i, i + number, ...

    Neighbours lie on one device. Dealt out like this, each device has its share of every microbatch
    already; of microbatches of neighbours it would have to fetch all.
    """

    def cut(values: jax.Array) -> jax.Array:
        return jnp.swapaxes(values.reshape(-1, number, *values.shape[1:]), 0, 1)

    return jax.tree.map(cut, dict(batch))
