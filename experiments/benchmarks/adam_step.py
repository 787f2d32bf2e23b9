"""One training step of a network: forward pass, backward pass and Adam's update, as functions of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.train.sharding import ParameterSharding

CLASSES = 1000
LEARNING_RATE = 1e-3


class State(NamedTuple):
    """The state that a step changes: parameters, the other collections, and Adam's moments."""

    params: Any
    rest: Any
    moments: Any


Measure = Callable[[nn.Module, Any, Any], tuple[jax.Array, Any]]
"""`measure(model, variables, batch)` returns the loss and the collections that changed."""


def measure_classifier(
    model: nn.Module, variables: Any, pictures: jax.Array
) -> tuple[jax.Array, Any]:
    """Returns the loss of a network for `CLASSES` classes; the labels are the numbers of the pictures."""
    logits, changed = model.apply(
        variables,
        pictures,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    labels = jnp.arange(len(pictures)) % CLASSES
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed


def make_step(
    model: nn.Module,
    sharding: ParameterSharding | None = None,
    measure: Measure = measure_classifier,
) -> tuple[Callable[[jax.Array, jax.Array], State], Callable[..., State]]:
    """Returns two functions that can be compiled: one makes a state, the other takes a step.

    Args:
        model: takes pictures.
        sharding: of parameters that are split over devices; None if each device has all of them.
        measure: computes the loss.

    Returns:
        A function of (key, a few pictures) that returns a new state, and one of (state, batch) that
        returns the state after a step.
    """
    optimizer = optax.adam(LEARNING_RATE)

    def create(key: jax.Array, pictures: jax.Array) -> State:
        variables = model.init(key, pictures)
        params = variables.pop("params")
        # `init` sows these, too; they are not state.
        for collection in ("intermediates", "losses"):
            variables.pop(collection, None)
        return State(params, variables, optimizer.init(params))

    def train(state: State, batch: Any) -> State:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            return measure(model, {"params": params, **state.rest}, batch)

        params = sharding.gather(state.params) if sharding else state.params
        gradients, changed = jax.grad(loss, has_aux=True)(params)
        gradients = sharding.shard(gradients) if sharding else gradients
        updates, moments = optimizer.update(gradients, state.moments)
        params = optax.apply_updates(state.params, updates)
        return State(params, {**state.rest, **changed}, moments)

    return create, train
